"""Measures how fast parts of tuna_jax are on this machine. Leave the machine alone meanwhile.

Examples:
  python -m tuna_jax.benchmark sample                          pictures, on the prefix cache and without
  python -m tuna_jax.benchmark sample --peer=peer.py           beside somebody's PyTorch code
  python -m tuna_jax.benchmark train --json train.json
  python -m tuna_jax.benchmark decode --batches=1,32 --new=256
  python -m tuna_jax.benchmark startup                         a new process draws its first picture
  python -m tuna_jax.benchmark data --workers 0 --threads 4    as a run makes batches without worker processes
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuna_jax.perf import (
    baseline,
    checkpointing,
    decoding,
    input_pipeline,
    sampling,
    startup,
    training_step,
    vae,
)
from tuna_jax.utils import malloc

_DATA = """Rows a second and core of every source of rows, at 512 pixels, beside a plain loop that does the same work:
JPEG files by a JSONL manifest and by TFDS, an MP4, and latents that were computed in advance. Both sides work on as
many cores at once, in windows that take turns.

The files are made for it: JPEGs (quality 90) of coloured 1/f noise, 640x480 and 1024x1024, and an MP4 of 100 frames of
640x480, of which a row takes 17. The goals are ratios: 0.9 of the plain loop for files, 20 times it for latents.
"""

_CHECKPOINTS = """What checkpoints cost: a training step with saves among the steps, as a ratio to one without,
in the background and waiting for each; how long a save holds the loop; and how long going on from a checkpoint takes,
beside making a fresh state. Random batches, one device. Windows of each kind take turns.
"""

_SIDES = """
Each round multiplies two matrices for a moment, to know what the machine can, and runs every side once; medians are
told. `of cores`: seconds of all cores that the process spent, which a busy machine changes less. `of rate` is the
FLOPs of a side's matrix products a second by that rate. MB: for ours, arguments, results and temporaries of the
compiled program; for a peer, the most that its process held. `ratio`: seconds by ours. Random weights.
"""

_PEER = f"""
A peer (--peer=FILE):

{(baseline.__doc__ or "").partition(chr(10))[2].strip()}
"""

_DRAWING = {
    "weights": "dtype that matrices are held in; empty: float32",
    "batch": "pictures at once",
    "prompt": "words of a prompt",
    "negative": "words of the negative prompt",
    "side": "of the latent",
    "points": "of the time grid",
    "guidance": "scale",
    "solver": "'euler' or 'heun'",
    "lengths": "tokens that sequences are padded to without the cache; 0: as few as will do",
    "longest": "ours without the cache runs up to this length: its attention holds length^2 scores a head",
    "whole": "of a longer one a peer takes one step, and its time is scaled",
}
_MODEL = {"preset": "the model", "dtype": "of activations; empty: the preset's"}
_ALIASES = {"baseline": ("--peer",)}  # Flags of earlier versions.
_ROUNDS = {"rounds": "of each side"}
_BESIDE = {"baseline": "a Python file with the same model, see below"}


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What can be measured: the module that does, its settings, and what its flags say."""

    part: Any
    text: str
    described: str
    helps: dict[str, str]
    settings: Callable[..., Any]


def _drawing(task: str, text: str, **defaults: Any) -> _Kind:
    described = f"How fast {text}.\n{_SIDES}{_PEER}"
    helps = _MODEL | _DRAWING | ({"frames": "latent frames"} if task == "video" else {})
    settings = functools.partial(sampling.Settings, task=task, **defaults)
    return _Kind(sampling, text, described, helps | _ROUNDS | _BESIDE, settings)


_KINDS = {
    "sample": _drawing("sample", "pictures are drawn, with guidance"),
    "edit": _drawing("edit", "pictures are edited, with guidance", lengths="0,3072"),
    "video": _drawing("video", "clips are drawn, with guidance", frames=3, lengths="0"),
    "decode": _Kind(
        decoding,
        "text is written, token by token",
        f"How fast text is written, greedily.\n{_SIDES}{_PEER}",
        _MODEL
        | {
            "batches": "rows at once, with commas",
            "prompt": "tokens of a row",
            "new": "tokens that it gets",
        }
        | _ROUNDS
        | _BESIDE,
        decoding.Settings,
    ),
    "train": _Kind(
        training_step,
        "a training step: loss, gradients, update",
        f"How fast a training step is: the joint loss of pictures and words, AdamW.\n{_SIDES}{_PEER}",
        _MODEL
        | {
            "remat": "what the backward pass recomputes; empty: the preset's",
            "attention": "backend; empty: the preset's",
            "batch": "rows of a step",
            "tokens": "of a row, padded",
            "words": "of its prompt",
            "side": "of the latent",
            "frames": "latent frames",
            "ema": "decay of the parameters' average; 0: none",
            "frozen": "parts that are not trained, with commas, such as language",
            "steps": "of a round",
        }
        | _ROUNDS
        | _BESIDE,
        training_step.Settings,
    ),
    "vae": _Kind(
        vae,
        "the VAE: whole clips and in chunks of time",
        f"How fast the VAE encodes and decodes.\n{_SIDES}",
        {
            "preset": "whose VAE",
            "dtype": "that it computes in",
            "batch": "clips at once",
            "size": "of a frame, in pixels",
            "frames": "1 + 4k",
        }
        | _ROUNDS,
        vae.Settings,
    ),
    "startup": _Kind(
        startup,
        "a new process draws its first picture",
        (startup.__doc__ or ""),
        {
            "model": "what `tuna_jax.generate --model` takes; empty: an emoji model with random weights",
            "prompt": "what is drawn",
            "rounds": "processes with a warm compile cache, after one with a cold one",
        },
        startup.Settings,
    ),
    "data": _Kind(
        input_pipeline,
        "the input path: rows a second and core of every source",
        _DATA,
        {
            "workers": "processes that make batches of files; 0: threads of this one do",
            "latent_workers": "the same for latents",
            "threads": "of this process, where no worker makes batches",
            "rounds": "windows of each side",
            "rows": "a batch",
            "count": "files of each kind",
            "seconds": "a window",
        },
        lambda **given: input_pipeline.Settings(**given),
    ),
    "checkpoints": _Kind(
        checkpointing,
        "saving and going on: step time with saves beside step time without",
        _CHECKPOINTS,
        {
            "preset": "the model",
            "rows": "a batch",
            "tokens": "a row",
            "steps": "of a window",
            "every": "steps between two saves",
            "rounds": "windows of each kind",
        },
        checkpointing.Settings,
    ),
}


def _arguments() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m tuna_jax.benchmark", description=__doc__, formatter_class=layout
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for name, kind in _KINDS.items():
        described = kind.described.replace("%", "%%")
        options = kinds.add_parser(
            name, help=kind.text, description=described, formatter_class=layout
        )
        settings = kind.settings()
        for key, told in kind.helps.items():
            default = getattr(settings, key)
            shown = f"{told} ({default!r})" if default != "" else told
            names = [f"--{key}", *_ALIASES.get(key, ())]
            options.add_argument(*names, type=type(default), default=default, help=shown)
        options.add_argument(
            "--json", type=Path, metavar="FILE", help="write all numbers and the settings there"
        )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    given = vars(_arguments().parse_args(arguments))
    kind = _KINDS[given.pop("kind")]
    file: Path | None = given.pop("json")
    try:
        settings = kind.settings(**given)
        with tempfile.TemporaryDirectory(prefix="tuna_jax-benchmark-") as folder:
            measured = kind.part.measure(settings, Path(folder))
    except (ValueError, FileNotFoundError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    print(kind.part.table(measured))
    if file is not None:
        text = json.dumps(kind.part.record(measured, settings), indent=1)
        file.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    malloc.keep()  # As train and generate do.
    sys.exit(main())
