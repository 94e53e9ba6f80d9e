"""Measures how fast parts of tuna_jax are on this machine, next to a baseline. The machine should be otherwise idle.

Examples:

    # Images, on the prefix cache and without it; next to the released PyTorch code, which FILE runs:
    tuna-jax benchmark sample
    tuna-jax benchmark sample --baseline=baseline.py

    # A training step, with all numbers in a file; text with one row and with 32:
    tuna-jax benchmark train --json=train.json
    tuna-jax benchmark decode --batches=1,32 --new=256

    # The first image of a new process; batches without worker processes; the cost of checkpoints:
    tuna-jax benchmark startup
    tuna-jax benchmark serve --requests=500 --clients=64
    tuna-jax benchmark data --workers=0 --threads=4
    tuna-jax benchmark index --rows=1000000,3000000
    tuna-jax benchmark checkpoints
    tuna-jax benchmark load --preset=tuna_7b --layers=8 --processes=2 --devices=4
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tuna_jax.cli import parsing
from tuna_jax.perf import (
    baseline,
    checkpointing,
    decoding,
    index,
    input_pipeline,
    loading,
    sampling,
    serving,
    startup,
    training_step,
    vae,
)
from tuna_jax.utils import malloc

_DATA = """Examples per second and core from every source, at 512 pixels, compared with a plain loop of the same work:
JPEG files through JSON lines, a JSON array, TFDS, ArrayRecord, Parquet (in row groups of 4) and a WebDataset tar, an
MP4, and precomputed latents. The tar is compared with the package `webdataset` too, if it is installed; `reduced` is a
stream with `reduced_decode`. Both variants use the same number of cores, in windows that alternate.

The files are made for the measurement: JPEGs (quality 90) of coloured 1/f noise, 640x480 and 1024x1024, and an MP4 of
100 frames of 640x480, of which an example takes 17. The goals are ratios: 0.9 of the plain loop for files, 20 times it
for latents, 1.5 times it for reduced decoding of large files, and as fast as the package `webdataset`.
"""

_CHECKPOINTS = """The cost of checkpoints: the time of a training step with saves among the steps, as a ratio to one
without, in the background and waiting for each save; how long a save blocks the loop; and how long resuming from a
checkpoint takes, compared with creating a fresh state. Random batches, one device. Windows of each kind alternate.
"""

_TABLE = """
Each round multiplies two matrices for a moment, to measure the machine's own rate, and runs every variant once; the
table has medians. `of cores`: seconds of all cores that the process used, which a busy machine changes less. `of rate`:
FLOPs of a variant's matrix products per second, as a fraction of that rate. MB: for ours, arguments, results and
temporaries of the compiled program; for a baseline, the most memory that its process held. `ratio`: seconds divided by
ours. Weights are random.
"""

_BASELINE = f"""
A baseline (--baseline=FILE):

{(baseline.__doc__ or "").partition(chr(10))[2].strip()}
"""

_SAMPLING = {
    "weights": "dtype of the matrices; empty: float32",
    "batch": "images per call",
    "prompt": "words of a prompt",
    "negative": "words of the negative prompt",
    "side": "side of the latent",
    "steps": "solver steps",
    "guidance": "guidance scale",
    "solver": "'euler' or 'heun'",
    "lengths": "tokens that sequences are padded to without the cache, separated by commas; 0: as few as possible",
    "longest": "longest length of ours without the cache, whose attention holds length^2 scores per head",
    "whole": "a baseline takes one step of longer sequences, and its time is scaled",
}
_MODEL = {"preset": "the model", "dtype": "dtype of activations; empty: the preset's"}
_ROUNDS = {"rounds": "rounds of each variant"}
_COMPARED = {"baseline": "Python file with another implementation of the model, see below"}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A measurement: the module that makes it, its settings, and the help of its flags.

    Attributes:
      part: a module of `tuna_jax.perf` with `measure`, `table` and `record`.
      summary: a line for the list of measurements.
      description: the help text.
      flags: help by setting.
      settings: makes the settings from the flags' values.
    """

    part: Any
    summary: str
    description: str
    flags: dict[str, str]
    settings: Callable[..., Any]


def _sampling(task: str, summary: str, **defaults: Any) -> Kind:
    flags = _MODEL | _SAMPLING | ({"frames": "latent frames"} if task == "video" else {})
    settings = functools.partial(sampling.Settings, task=task, **defaults)
    description = f"How fast the model {summary}.\n{_TABLE}{_BASELINE}"
    return Kind(sampling, summary, description, flags | _ROUNDS | _COMPARED, settings)


KINDS = {
    "sample": _sampling("sample", "generates images, with guidance"),
    "edit": _sampling("edit", "edits images, with guidance", lengths="0,3072"),
    "video": _sampling("video", "generates video, with guidance", frames=3, lengths="0"),
    "decode": Kind(
        decoding,
        "generates text, token by token",
        f"How fast the model generates text, greedily.\n{_TABLE}{_BASELINE}",
        _MODEL
        | {
            "batches": "rows per call, separated by commas",
            "prompt": "tokens of the prompt",
            "new": "tokens to generate",
        }
        | _ROUNDS
        | _COMPARED,
        decoding.Settings,
    ),
    "train": Kind(
        training_step,
        "a training step: loss, gradients, update",
        f"How fast a training step is: the joint loss of images and text, AdamW.\n{_TABLE}{_BASELINE}",
        _MODEL
        | {
            "remat": "what the backward pass recomputes; empty: the preset's",
            "attention": "attention backend; empty: the preset's",
            "batch": "rows per step",
            "tokens": "tokens per row, padded",
            "words": "words of the prompt",
            "side": "side of the latent",
            "frames": "latent frames",
            "ema": "decay of the parameters' average; 0: none",
            "frozen": "parts that are not trained, separated by commas, such as language",
            "steps": "steps per round",
        }
        | _ROUNDS
        | _COMPARED,
        training_step.Settings,
    ),
    "vae": Kind(
        vae,
        "the VAE: whole clips, and in chunks of time",
        f"How fast the VAE encodes and decodes.\n{_TABLE}",
        {
            "preset": "the model whose VAE is measured",
            "dtype": "dtype that it computes in",
            "batch": "clips per call",
            "size": "side of a frame in pixels",
            "frames": "frames of a clip, 1 + 4k",
        }
        | _ROUNDS,
        vae.Settings,
    ),
    "startup": Kind(
        startup,
        "the first image of a new process",
        startup.__doc__ or "",
        {
            "model": "a model as for `tuna-jax generate`; empty: an emoji model with random weights",
            "prompt": "the prompt",
            "rounds": "processes with a warm compile cache, after one with a cold one",
        },
        startup.Settings,
    ),
    "serve": Kind(
        serving,
        "the server under a mixed load, each result compared with the same request by itself",
        serving.__doc__ or "",
        {
            "model": "a model as for `tuna-jax serve`",
            "requests": "number of requests",
            "clients": "clients at once",
            "tokens": "tokens of an answer",
            "steps": "solver steps of an image; 0: the model's own",
        },
        serving.Settings,
    ),
    "data": Kind(
        input_pipeline,
        "the input pipeline: examples per second and core of every source",
        _DATA,
        {
            "workers": "processes that make batches of files; 0: threads of this process",
            "latent_workers": "the same for latents",
            "threads": "threads of this process if no worker makes batches",
            "rounds": "windows of each variant",
            "rows": "rows per batch",
            "count": "files of each kind",
            "seconds": "seconds per window",
        },
        lambda **values: input_pipeline.Settings(**values),
    ),
    "index": Kind(
        index,
        "starts on millions of examples: seconds to the first batch, bytes of memory per example",
        index.__doc__ or "",
        {
            "rows": "numbers of examples, ascending, separated by commas",
            "workers": "numbers of processes that make batches, separated by commas",
            "rounds": "starts of each kind",
        },
        index.Settings,
    ),
    "load": Kind(
        loading,
        "loading a sharded model on several processes: what each reads and holds",
        loading.__doc__ or "",
        {
            "preset": "the model",
            "layers": "language layers, for models that exceed this machine's memory; 0: the preset's",
            "processes": "number of processes",
            "devices": "virtual devices of each process",
            "tensor": "size of the mesh's axis `tensor`; all other devices are along `fsdp`",
        },
        loading.Settings,
    ),
    "checkpoints": Kind(
        checkpointing,
        "saving and resuming: the time of steps with saves among them",
        _CHECKPOINTS,
        {
            "preset": "the model",
            "rows": "rows per batch",
            "tokens": "tokens per row",
            "steps": "steps per window",
            "every": "steps between two saves",
            "log_every": "steps between two log lines",
            "rounds": "windows of each kind",
        },
        checkpointing.Settings,
    ),
}


def _parser() -> argparse.ArgumentParser:
    parser = parsing.make_parser("benchmark", __doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for name, kind in KINDS.items():
        command = kinds.add_parser(
            name,
            help=kind.summary,
            description=kind.description.replace("%", "%%"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        defaults = kind.settings()
        for key, text in kind.flags.items():
            default = getattr(defaults, key)
            text = f"{text} (default {default})" if default != "" else text
            command.add_argument(f"--{key}", type=type(default), default=default, help=text)
        command.add_argument(
            "--json", type=Path, metavar="FILE", help="write all numbers and the settings to FILE"
        )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    options = _parser().parse_args(parsing.current_arguments("benchmark", arguments))
    return parsing.run(lambda: _measure(options), options.verbosity)


def _measure(options: argparse.Namespace) -> None:
    kind = KINDS[options.kind]
    settings = kind.settings(**{key: getattr(options, key) for key in kind.flags})
    with tempfile.TemporaryDirectory(prefix="tuna_jax-benchmark-") as folder:
        measured = kind.part.measure(settings, Path(folder))
    print(kind.part.table(measured))
    if options.json is not None:
        text = json.dumps(kind.part.record(measured, settings), indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    malloc.keep()
    sys.exit(main())
