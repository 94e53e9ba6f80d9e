"""`tuna-jax COMMAND ...`: trains, generates, evaluates, converts and plans TUNA models."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

from tuna_jax.utils import malloc

COMMANDS = {
    "train": "train or resume the model that an experiment file describes",
    "generate": "generate and edit images, generate video, answer questions, chat",
    "evaluate": "evaluate a training run: a report, learning curves, or a sweep over checkpoints",
    "ablate": "train the arms of a study over several seeds, and compare them",
    "evaluate-benchmarks": "generate for published benchmarks (GenEval, DPG-Bench, VBench, ...) and check the folders",
    "evaluate-vqa": "visual question answering with known answers",
    "evaluate-images": "PSNR, SSIM, FID, CMMD and CKNNA of folders of images",
    "convert": "weights to and from PyTorch; inspect files; verify parity",
    "plan": "compile an experiment for a TPU slice that is not at hand: memory, bounds, search",
    "doctor": "check a device, a host or a slice before the first run on it",
    "benchmark": "measure speed on this machine, next to a baseline",
    "serve": "serve a model over HTTP, at the endpoints that OpenAI's clients know",
    "export": "export the sampler as files that servers load without tracing",
    "encode-latents": "precompute VAE latents of a data set",
    "data": "list, inspect and convert data sets",
}
"""By name on the command line: what the command does; `module_of` names its module."""


def module_of(command: str) -> str:
    """The module of a command: `tuna_jax.NAME` with underscores, and of `data`, which is a room, data_command."""
    return f"tuna_jax.{'data_command' if command == 'data' else command.replace('-', '_')}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0].replace("_", "-") if given else "--help"
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0 if given else 2
    if name == "--version":
        print(f"tuna-jax {importlib.metadata.version('tuna_jax')}")
        return 0
    if name not in COMMANDS:
        print(f"error: unknown command {given[0]!r}; `tuna-jax --help` lists them", file=sys.stderr)
        return 2
    malloc.keep()
    module = importlib.import_module(module_of(name))
    return module.main(given[1:])


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: tuna-jax COMMAND [FLAG ...]",
            "",
            "Commands:",
            *lines,
            "",
            "`tuna-jax COMMAND --help` explains a command with examples; `tuna-jax --version` prints the version.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
