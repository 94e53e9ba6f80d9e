"""Compares folders of pictures and files of features: reconstruction, distributions, alignment of representations.

Examples:

    # What a model's VAE keeps of pictures: PSNR and SSIM, mean and 95 % interval over pictures:
    python -m tuna_jax.evaluate_images reconstruction --model=runs/emoji --pictures=photos/

    # FID and CMMD between two folders, with features of your own extractor, a function from a list of Pillow pictures
    # to an array [pictures, width] (FID's is Inception's pool3, CMMD's is CLIP's image embedding of length 1), or
    # between two files of features:
    python -m tuna_jax.evaluate_images distribution --pictures=drawn/ --reference=photos/ --extractor=mine.py:clip
    python -m tuna_jax.evaluate_images distribution --features=drawn.npy --reference=photos.npy

    # A model's unified representation of pictures, averaged over tokens, as a file; or an extractor's:
    python -m tuna_jax.evaluate_images features --model=runs/emoji --pictures=photos/ --output=ours.safetensors

    # CKNNA between our unified features and any file of features of the same pictures, in the order of their paths:
    python -m tuna_jax.evaluate_images alignment --model=runs/emoji --pictures=photos/ --reference=dino.npy
    python -m tuna_jax.evaluate_images alignment --features=ours.npy --reference=dino.safetensors --neighbours=10

Files of features are .npy, or .safetensors with a tensor `features` (or FILE:NAME), [rows, width] or
[rows, tokens, width]. Each command prints a line of JSON too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # JAX is not imported before flags are read.
    import numpy as np

_FLAGS = {
    "reconstruction": ("model", "vae", "tokenizer", "pictures", "count", "size"),
    "distribution": ("pictures", "features", "reference", "extractor", "count", "sigma"),
    "features": ("model", "vae", "tokenizer", "pictures", "extractor", "count", "size", "output"),
    "alignment": (
        *("model", "vae", "tokenizer", "pictures", "features", "extractor", "reference"),
        *("count", "size", "neighbours", "clip"),
    ),
}
_NEEDED = {
    "reconstruction": ("model", "pictures"),
    "distribution": ("reference",),
    "features": ("pictures", "output"),
    "alignment": ("reference",),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    try:
        found = _COMMANDS[chosen.command](chosen)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tuna_jax.evaluate_images",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags: dict[str, dict[str, Any]] = {
        "model": {"metavar": "PATH", "help": "workdir of a run, or a converted model"},
        "vae": {"metavar": "PATH", "help": "the VAE, if the model has none in it"},
        "tokenizer": {"metavar": "PATH", "help": "the tokenizer, if the model names none"},
        "pictures": {"metavar": "FOLDER", "help": "pictures, also in its folders"},
        "features": {"metavar": "FILE", "help": "features instead of pictures"},
        "reference": {"metavar": "PATH", "help": "what to compare with: features, or pictures"},
        "extractor": {"metavar": "FILE.py:NAME", "help": "function: pictures to [n, width]"},
        "output": {"metavar": "FILE", "help": ".npy or .safetensors"},
        "count": {"type": int, "metavar": "N", "help": "only the first N pictures"},
        "size": {
            "type": int,
            "metavar": "PIXELS",
            "help": "a square's side (default: the model's)",
        },
        "sigma": {"type": float, "default": 10.0, "help": "of CMMD's kernel (default 10)"},
        "neighbours": {"type": int, "default": 10, "metavar": "K", "help": "default 10"},
        "clip": {
            "type": float,
            "default": 0.95,
            "help": "share of magnitudes that is not clipped (default 0.95; 1 clips none)",
        },
    }
    commands = parser.add_subparsers(dest="command", required=True)
    for name, known in _FLAGS.items():
        command = commands.add_parser(name, allow_abbrev=False)
        for flag in known:
            command.add_argument(f"--{flag}", required=flag in _NEEDED[name], **flags[flag])
    return parser


def _reconstruction(chosen: argparse.Namespace) -> dict[str, Any]:
    from tuna_jax.evaluation import features
    from tuna_jax.evaluation.metrics import psnr_ssim

    model, paths = _model(chosen), features.pictures_in(chosen.pictures, chosen.count)
    pictures = features.read_all(paths, _size(chosen, model))
    again = features.reconstruct(model, pictures)
    found = {}
    for name, score in (("psnr_db", psnr_ssim.psnr), ("ssim", psnr_ssim.ssim)):
        values = score(pictures, again)
        mean, half = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
        print(f"{name:8} {mean:8.4f}  [{mean - half:.4f}, {mean + half:.4f}]  n={len(values)}")
        found[name] = mean
    return {**found, "pictures": len(paths), "size": list(pictures.shape[1:3])}


def _distribution(chosen: argparse.Namespace) -> dict[str, Any]:
    from tuna_jax.evaluation.metrics import fid_cmmd

    ours, _ = _rows(chosen, chosen.features, chosen.pictures)
    is_folder = Path(chosen.reference).is_dir()
    theirs, _ = _rows(
        chosen, None if is_folder else chosen.reference, chosen.reference if is_folder else None
    )
    found = {
        "frechet_distance": fid_cmmd.frechet_distance(ours, theirs),
        "cmmd": fid_cmmd.cmmd(ours, theirs, sigma=chosen.sigma),
    }
    for name, value in found.items():
        print(f"{name:18} {value:.6g}")
    if min(len(ours), len(theirs)) <= ours.shape[1]:
        print(
            f"note: {len(ours)} and {len(theirs)} rows of {ours.shape[1]} numbers: too few for the Frechet distance",
            file=sys.stderr,
        )
    return {**found, "rows": [len(ours), len(theirs)], "width": ours.shape[1]}


def _features(chosen: argparse.Namespace) -> dict[str, Any]:
    from tuna_jax.evaluation import features

    made, names = _rows(chosen, None, chosen.pictures)
    path = features.write(chosen.output, made, names or [])
    return {"file": str(path), "rows": len(made), "width": made.shape[1]}


def _alignment(chosen: argparse.Namespace) -> dict[str, Any]:
    from tuna_jax.evaluation import features
    from tuna_jax.evaluation.metrics import cknna

    ours, names = _rows(chosen, chosen.features, chosen.pictures)
    theirs, other_names = features.read(chosen.reference)
    if names and other_names and len(names) == len(other_names) and names != other_names:
        place = next(
            i for i, pair in enumerate(zip(names, other_names, strict=True)) if len({*pair}) > 1
        )
        raise ValueError(
            f"row {place} is {names[place]} here and {other_names[place]} in {chosen.reference}: they must have the "
            f"same pictures in one order"
        )
    ours, theirs = (cknna.prepare(x, chosen.clip) for x in (ours, theirs))
    value = cknna.cknna(ours, theirs, chosen.neighbours)
    print(f"cknna {value:.6f}  ({chosen.neighbours} neighbours, {len(ours)} rows)")
    return {"cknna": value, "neighbours": chosen.neighbours, "rows": len(ours)}


def _rows(
    chosen: argparse.Namespace, file: str | None, folder: str | None
) -> tuple[np.ndarray, list[str] | None]:
    """Features of a file, or of a folder's pictures by the extractor or the model; and of what they are."""
    from tuna_jax.evaluation import features

    if (file is None) == (folder is None):
        raise ValueError("give either --features=FILE or --pictures=FOLDER")
    if file is not None:
        return features.read(file)
    assert folder is not None
    paths = features.pictures_in(folder, chosen.count)
    names = [path.relative_to(folder).as_posix() for path in paths]
    model = getattr(chosen, "model", None)
    if chosen.extractor:
        if model:
            raise ValueError("features come from --model or from --extractor; give one")
        return features.extracted(features.load_extractor(chosen.extractor), paths), names
    if not model:
        raise ValueError(
            f"features of pictures in {folder} want --extractor=FILE.py:NAME or --model"
        )
    loaded = _model(chosen)
    return features.unified(loaded, features.read_all(paths, _size(chosen, loaded))), names


def _model(chosen: argparse.Namespace) -> Any:
    from tuna_jax.inference.pipeline import Tuna

    return Tuna.load(chosen.model, vae=chosen.vae, tokenizer=chosen.tokenizer)


def _size(chosen: argparse.Namespace, model: Any) -> tuple[int, int]:
    return (chosen.size, chosen.size) if chosen.size else model.size


_COMMANDS = {
    "reconstruction": _reconstruction,
    "distribution": _distribution,
    "features": _features,
    "alignment": _alignment,
}

if __name__ == "__main__":
    sys.exit(main())
