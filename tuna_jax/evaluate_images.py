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
[images, tokens, width]. The last line that a command prints is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuna_jax.cli import parsing, shared_flags

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

    def work() -> None:
        print(json.dumps(_COMMANDS[options.command](options)))

    return parsing.run(work, options.verbosity)


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
            "type": float,
            "default": 10.0,
            "help": "width of CMMD's kernel (default 10)",
        },
        "neighbours": {
            "type": int,
            "default": 10,
            "metavar": "K",
            "help": "nearest neighbours of CKNNA (default 10)",
        },
        "clip": {
            "type": float,
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


def _reconstruction(options: argparse.Namespace) -> dict[str, Any]:
    from tuna_jax.evaluation import features
    from tuna_jax.evaluation.metrics import psnr_ssim

    model, paths = (
        shared_flags.load_model(options),
        features.pictures_in(options.images, options.count),
    )
    pictures = features.read_all(paths, _size(options, model))
    again = features.reconstruct(model, pictures)
    scores = {}
    for name, score in (("psnr_db", psnr_ssim.psnr), ("ssim", psnr_ssim.ssim)):
        values = score(pictures, again)
        mean, half = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
        print(f"{name:8} {mean:8.4f}  [{mean - half:.4f}, {mean + half:.4f}]  n={len(values)}")
        scores[name] = mean
    return {**scores, "pictures": len(paths), "size": list(pictures.shape[1:3])}


def _distribution(options: argparse.Namespace) -> dict[str, Any]:
    from tuna_jax.evaluation.metrics import fid_cmmd

    ours, _ = _rows(options, options.features, options.images)
    is_folder = Path(options.reference).is_dir()
    theirs, _ = _rows(
        options, None if is_folder else options.reference, options.reference if is_folder else None
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


def _features(options: argparse.Namespace) -> dict[str, Any]:
    from tuna_jax.evaluation import features

    made, names = _rows(options, None, options.images)
    path = features.write(options.output, made, names or [])
    return {"file": str(path), "rows": len(made), "width": made.shape[1]}


def _alignment(options: argparse.Namespace) -> dict[str, Any]:
    from tuna_jax.evaluation import features
    from tuna_jax.evaluation.metrics import cknna

    ours, names = _rows(options, options.features, options.images)
    theirs, other_names = features.read(options.reference)
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
    options: argparse.Namespace, file: str | None, folder: str | None
) -> tuple[np.ndarray, list[str] | None]:
    """Features of a file, or of a folder's images by the extractor or the model; and the names of the images."""
    from tuna_jax.evaluation import features

    if (file is None) == (folder is None):
        raise ValueError("give either --features=FILE or --images=DIR")
    if file is not None:
        return features.read(file)
    assert folder is not None
    paths = features.pictures_in(folder, options.count)
    names = [path.relative_to(folder).as_posix() for path in paths]
    model = getattr(options, "model", None)
    if options.extractor:
        if model:
            raise ValueError("features come from --model or from --extractor; give one")
        return features.extracted(features.load_extractor(options.extractor), paths), names
    if not model:
        raise ValueError(
            f"features of the images in {folder} require --extractor=FILE.py:NAME or --model"
        )
    loaded = shared_flags.load_model(options)
    return features.unified(loaded, features.read_all(paths, _size(options, loaded))), names


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
