"""Compares folders of images and files of features: reconstruction, distributions, alignment of representations.

Examples:

    # What a model's VAE preserves: PSNR and SSIM, mean and 95 % interval over the images:
    tuna-jax evaluate-images reconstruction --model=runs/emoji --images=photos/

    # FID and CMMD between two folders, with features of your own extractor, a function from a list of Pillow images to
    # an array [images, width] (FID's is Inception's pool3, CMMD's is CLIP's image embedding, normalised), or between
    # two files of features:
    tuna-jax evaluate-images distribution --images=generated/ --reference=photos/ --extractor=mine.py:clip
    tuna-jax evaluate-images distribution --features=generated.npy --reference=photos.npy

    # A model's unified representation of images, averaged over tokens, as a file; or an extractor's features:
    tuna-jax evaluate-images features --model=runs/emoji --images=photos/ --output=ours.safetensors

    # CKNNA between our unified features and any file of features of the same images, in the order of their paths:
    tuna-jax evaluate-images alignment --model=runs/emoji --images=photos/ --reference=dino.npy
    tuna-jax evaluate-images alignment --features=ours.npy --reference=dino.safetensors --neighbours=10

Files of features are .npy, or .safetensors with a tensor `features` (or FILE:NAME), [images, width] or
[images, tokens, width]. The last line that a command prints is JSON. An image that cannot be read is left out and
counted as `failed`, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuna_jax.cli import parsing, shared_flags
from tuna_jax.utils.text_files import json_text

if TYPE_CHECKING:  # JAX is not imported before flags are read.
    import numpy as np

_MODEL_COMMANDS = ("reconstruction", "features", "alignment")
_FLAGS = {
    "reconstruction": ("images", "count", "size"),
    "distribution": ("images", "features", "reference", "extractor", "count", "sigma"),
    "features": ("images", "extractor", "count", "size", "output"),
    "alignment": (
        *("images", "features", "extractor", "reference"),
        *("count", "size", "neighbours", "clip"),
    ),
}
_REQUIRED = {
    "reconstruction": ("images",),
    "distribution": ("reference",),
    "features": ("images", "output"),
    "alignment": ("reference",),
}
_HELP = {
    "reconstruction": "PSNR and SSIM of the VAE's reconstructions",
    "distribution": "FID and CMMD between two sets of images",
    "features": "write features of images to a file",
    "alignment": "CKNNA between two sets of features",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    options = _parser().parse_args(parsing.current_arguments("evaluate_images", arguments))

    def work() -> int:
        failures: dict[Path, str] = {}
        values = _COMMANDS[options.command](options, failures)
        for reason in list(failures.values())[:10]:
            print(f"failed: {reason}", file=sys.stderr)
        if failures:
            print(f"error: {len(failures)} images failed and were left out", file=sys.stderr)
            values["failed"] = len(failures)
        wrong = [name for name, value in values.items() if not _is_finite(value)]
        for name in wrong:
            print(f"error: {name} is not finite ({values[name]})", file=sys.stderr)
        print(json_text(values))
        return 1 if failures or wrong else 0

    return parsing.run_on_all_processes(work, options.verbosity)


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _parser() -> argparse.ArgumentParser:
    parser = parsing.make_parser("evaluate-images", __doc__)
    flags: dict[str, dict[str, Any]] = {
        "images": {"metavar": "DIR", "help": "folder of images, subfolders included"},
        "features": {"metavar": "FILE", "help": "features instead of images"},
        "reference": {
            "metavar": "PATH",
            "help": "what to compare with: a file of features, or a folder of images",
        },
        "extractor": {
            "metavar": "FILE.py:NAME",
            "help": "function from a list of images to features [images, width]",
        },
        "output": {"metavar": "FILE", "help": ".npy or .safetensors file to write"},
        "count": {
            "type": parsing.positive_int,
            "metavar": "N",
            "help": "only the first N images",
        },
        "size": {
            "type": parsing.positive_int,
            "metavar": "PIXELS",
            "help": "side of a square (default: the model's)",
        },
        "sigma": {
            "type": parsing.positive,
            "default": 10.0,
            "help": "width of CMMD's kernel (default 10)",
        },
        "neighbours": {
            "type": parsing.positive_int,
            "default": 10,
            "metavar": "K",
            "help": "nearest neighbours of CKNNA (default 10)",
        },
        "clip": {
            "type": parsing.finite,
            "default": 0.95,
            "metavar": "FRACTION",
            "help": "larger magnitudes than this fraction of all are clipped; 1 clips none (default 0.95)",
        },
    }
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, names in _FLAGS.items():
        command = commands.add_parser(
            name, allow_abbrev=False, help=_HELP[name], description=_HELP[name]
        )
        if name in _MODEL_COMMANDS:
            shared_flags.add_model(command, required=name == "reconstruction", mesh=False)
        for flag in names:
            command.add_argument(f"--{flag}", required=flag in _REQUIRED[name], **flags[flag])
    return parser


def _reconstruction(options: argparse.Namespace, failures: dict[Path, str]) -> dict[str, Any]:
    from tuna_jax.evaluation import features
    from tuna_jax.evaluation.metrics import psnr_ssim

    model, paths = (
        shared_flags.load_model(options),
        features.pictures_in(options.images, options.count),
    )
    pictures = features.read_all(paths, _size(options, model), failures)
    again = features.reconstruct(model, pictures)
    scores = {}
    for name, score in (("psnr_db", psnr_ssim.psnr), ("ssim", psnr_ssim.ssim)):
        values = score(pictures, again)
        mean, half = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
        print(f"{name:8} {mean:8.4f}  [{mean - half:.4f}, {mean + half:.4f}]  n={len(values)}")
        scores[name] = mean
    return {**scores, "pictures": len(pictures), "size": list(pictures.shape[1:3])}


def _distribution(options: argparse.Namespace, failures: dict[Path, str]) -> dict[str, Any]:
    from tuna_jax.evaluation.metrics import fid_cmmd

    ours, _ = _rows(options, options.features, options.images, failures)
    is_folder = Path(options.reference).is_dir()
    theirs, _ = _rows(
        options,
        None if is_folder else options.reference,
        options.reference if is_folder else None,
        failures,
    )
    distances = {
        "frechet_distance": fid_cmmd.frechet_distance(ours, theirs),
        "cmmd": fid_cmmd.cmmd(ours, theirs, sigma=options.sigma),
    }
    for name, value in distances.items():
        print(f"{name:18} {value:.6g}")
    if min(len(ours), len(theirs)) <= ours.shape[1]:
        print(
            f"note: {len(ours)} and {len(theirs)} images with {ours.shape[1]} features each are too few for a reliable "
            "Frechet distance",
            file=sys.stderr,
        )
    return {**distances, "rows": [len(ours), len(theirs)], "width": ours.shape[1]}


def _features(options: argparse.Namespace, failures: dict[Path, str]) -> dict[str, Any]:
    from tuna_jax.evaluation import features

    made, names = _rows(options, None, options.images, failures)
    path = features.write(options.output, made, names or [])
    return {"file": str(path), "rows": len(made), "width": made.shape[1]}


def _alignment(options: argparse.Namespace, failures: dict[Path, str]) -> dict[str, Any]:
    from tuna_jax.evaluation import features
    from tuna_jax.evaluation.metrics import cknna

    ours, names = _rows(options, options.features, options.images, failures)
    theirs, other_names = features.read(options.reference)
    if failures and other_names is None:
        raise ValueError(
            f"{len(failures)} images failed, and {options.reference} has no names to match the others by; the first: "
            f"{next(iter(failures.values()))}"
        )
    if failures and other_names is not None:
        kept = [row for row, name in enumerate(other_names) if name in set(names or ())]
        theirs, other_names = theirs[kept], [other_names[row] for row in kept]
    if names and other_names and len(names) == len(other_names) and names != other_names:
        place = next(
            i for i, pair in enumerate(zip(names, other_names, strict=True)) if len({*pair}) > 1
        )
        raise ValueError(
            f"row {place} is {names[place]} here and {other_names[place]} in {options.reference}: both must have the "
            f"same images in the same order"
        )
    ours, theirs = (cknna.prepare(x, options.clip) for x in (ours, theirs))
    value = cknna.cknna(ours, theirs, options.neighbours)
    print(f"cknna {value:.6f}  ({options.neighbours} neighbours, {len(ours)} rows)")
    return {"cknna": value, "neighbours": options.neighbours, "rows": len(ours)}


def _rows(
    options: argparse.Namespace, file: str | None, folder: str | None, failures: dict[Path, str]
) -> tuple[np.ndarray, list[str] | None]:
    """Features of a file, or of a folder's images by the extractor or the model; and the names of the images."""
    from tuna_jax.evaluation import features

    if (file is None) == (folder is None):
        raise ValueError("give either --features=FILE or --images=DIR")
    if file is not None:
        return features.read(file)
    assert folder is not None
    paths = features.pictures_in(folder, options.count)

    def names() -> list[str]:
        return [path.relative_to(folder).as_posix() for path in paths if path not in failures]

    model = getattr(options, "model", None)
    if options.extractor:
        if model:
            raise ValueError("features come from --model or from --extractor; give one")
        extractor = features.load_extractor(options.extractor)
        return features.extracted(extractor, paths, failures=failures), names()
    if not model:
        raise ValueError(
            f"features of the images in {folder} require --extractor=FILE.py:NAME or --model"
        )
    loaded = shared_flags.load_model(options)
    rows = features.unified(loaded, features.read_all(paths, _size(options, loaded), failures))
    read = [path for path in paths if path not in failures]
    return rows[features.finite_features(rows, read, failures)], names()


def _size(options: argparse.Namespace, model: Any) -> tuple[int, int]:
    return (options.size, options.size) if options.size else model.size


_COMMANDS = {
    "reconstruction": _reconstruction,
    "distribution": _distribution,
    "features": _features,
    "alignment": _alignment,
}

if __name__ == "__main__":
    sys.exit(main())
