"""Measures how fast parts of tuna_jax are on this machine.

Examples:
  python -m tuna_jax.benchmark data                            leave the machine alone meanwhile
  python -m tuna_jax.benchmark data --rounds 7 --json data.json
  python -m tuna_jax.benchmark data --workers 0 --threads 4    as a run makes batches without worker processes
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tuna_jax.recipes import data_speed

_DATA = """Rows a second and core of every source of rows, at 512 pixels, beside a plain loop that does the same work:
JPEG files by a JSONL manifest and by TFDS, an MP4, and latents that were computed in advance. Both sides work on as
many cores at once, in windows that take turns.

The files are made for it: JPEGs (quality 90) of coloured 1/f noise, 640x480 and 1024x1024, and an MP4 of 100 frames of
640x480, of which a row takes 17. The goals are ratios: 0.9 of the plain loop for files, 20 times it for latents.
"""


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tuna_jax.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    data = kinds.add_parser(
        "data",
        help="the input path: rows a second and core of every source",
        description=_DATA,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = data_speed.Settings()
    add = data.add_argument
    helps = {
        "workers": "processes that make batches of files; 0: threads of this one do",
        "latent_workers": "the same for latents",
        "threads": "of this process, where no worker makes batches",
        "rounds": "windows of each side",
        "rows": "a batch",
        "count": "files of each kind",
    }
    for key, text in helps.items():
        add(f"--{key}", type=int, default=getattr(default, key), help=f"{text} (%(default)s)")
    add("--seconds", type=float, default=default.seconds, help="a window (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the numbers of every round there")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    given = vars(_arguments().parse_args(arguments))
    given.pop("kind")
    file: Path | None = given.pop("json")
    try:
        settings = data_speed.Settings(**given)
    except ValueError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="tuna_jax-benchmark-") as folder:
        rates = data_speed.measure(settings, Path(folder))
    print(data_speed.table(rates))
    if file is not None:
        text = json.dumps(data_speed.record(rates, settings), indent=1)
        file.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
