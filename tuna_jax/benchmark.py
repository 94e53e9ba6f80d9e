"""Measures how fast parts of tuna_jax are on this machine.

Examples:
  python -m tuna_jax.benchmark data                            leave the machine alone meanwhile
  python -m tuna_jax.benchmark data --rounds 7 --json data.json
  python -m tuna_jax.benchmark data --workers 0 --threads 4    as a run makes batches without worker processes
  python -m tuna_jax.benchmark checkpoints                     what saving and going on cost
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tuna_jax.recipes import checkpoint_speed, data_speed

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


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tuna_jax.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")

    def kind(name: str, text: str, described: str, settings: Any, helps: dict[str, str]) -> Any:
        options = kinds.add_parser(
            name,
            help=text,
            description=described,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for key, told in helps.items():
            default = getattr(settings, key)
            shown = f"{told} (%(default)s)"
            options.add_argument(f"--{key}", type=type(default), default=default, help=shown)
        options.add_argument(
            "--json", type=Path, metavar="FILE", help="write all numbers and the settings there"
        )
        return options

    kind(
        "data",
        "the input path: rows a second and core of every source",
        _DATA,
        data_speed.Settings(),
        {
            "workers": "processes that make batches of files; 0: threads of this one do",
            "latent_workers": "the same for latents",
            "threads": "of this process, where no worker makes batches",
            "rounds": "windows of each side",
            "rows": "a batch",
            "count": "files of each kind",
            "seconds": "a window",
        },
    )
    kind(
        "checkpoints",
        "saving and going on: step time with saves beside step time without",
        _CHECKPOINTS,
        checkpoint_speed.Settings(),
        {
            "preset": "the model",
            "rows": "a batch",
            "tokens": "a row",
            "steps": "of a window",
            "every": "steps between two saves",
            "rounds": "windows of each kind",
        },
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    given = vars(_arguments().parse_args(arguments))
    part: Any = {"data": data_speed, "checkpoints": checkpoint_speed}[given.pop("kind")]
    file: Path | None = given.pop("json")
    try:
        settings = part.Settings(**given)
    except ValueError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="tuna_jax-benchmark-") as folder:
        measured = part.measure(settings, Path(folder))
    print(part.table(measured))
    if file is not None:
        text = json.dumps(part.record(measured, settings), indent=1)
        file.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
