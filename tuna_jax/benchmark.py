"""Measures how fast parts of tuna_jax are on this machine.

Examples:
  python -m tuna_jax.benchmark data
  python -m tuna_jax.benchmark data --threads 2 --rounds 7 --json data.json
  python -m tuna_jax.benchmark data --workers 2      by the clock on the wall: leave the machine alone meanwhile
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tuna_jax.recipes import data_speed

_DATA = """Rows a second and core of every source of rows, at 512 pixels, beside a plain loop that does the same work:
JPEG files by a JSONL manifest and by TFDS, an MP4, and latents that were computed in advance.

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
    add("--threads", type=int, default=default.threads, help="that make batches, a process (%(default)s)")  # fmt: skip
    add("--workers", type=int, default=default.workers, help="worker processes; 0: none (%(default)s)")  # fmt: skip
    add("--rounds", type=int, default=default.rounds, help="how often all take turns (%(default)s)")
    add(
        "--seconds",
        type=float,
        default=default.seconds,
        help="of each, in each round (%(default)s)",
    )
    add("--rows", type=int, default=default.rows, help="rows a batch (%(default)s)")
    add("--count", type=int, default=default.count, help="files of each kind (%(default)s)")
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
