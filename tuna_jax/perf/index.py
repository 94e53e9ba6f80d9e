"""Measures how a run starts on a source of millions of examples, and how much memory its index takes. Each start is a
process of its own, which opens a manifest whose index is at hand and waits for the first batch; its worker processes
map the same files.

The first start sorts the examples into buckets and shuffles them; later ones map what it kept. The files are in the
page cache of the system. Bytes per row are compared with the same start on 1,000 rows. `private`: memory that a process
has for itself, of the process that has most. `in all`: of all processes together, where shared pages count once, after
everything was read that a long run reads. `peak`: the most that the main process held, while it started.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tuna_jax.data.media.image import Size
from tuna_jax.data.mixture.metadata import ExampleMetadata
from tuna_jax.data.mixture.scan import index_of
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.perf import harness
from tuna_jax.perf.input_files import noise_picture

_FEW = 1000
_PICTURES = 8
_TARGET = 100_000_000
GOAL_SECONDS, GOAL_BYTES = 60.0, 16.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the measurement.

    Attributes:
      rows: numbers of examples, ascending, separated by commas.
      workers: numbers of worker processes, separated by commas.
      rounds: starts of each kind; those that make buckets and orders begin without them.
    """

    rows: str = "1000000,3000000,10000000"
    workers: str = "1,4"
    rounds: int = 3

    def __post_init__(self) -> None:
        for key in ("rows", "workers"):
            numbers = getattr(self, key).split(",")
            if not all(number.isdecimal() and int(number) > 0 for number in numbers):
                raise ValueError(f"{key} is {getattr(self, key)!r}; give whole numbers with commas")
        harness.at_least(self, rounds=1)


@dataclasses.dataclass(frozen=True)
class Start:
    """The starts of a kind on a number of rows: medians over the rounds.

    Attributes:
      rows, workers: as in the settings.
      first: whether the buckets and orders were made, and not mapped.
      seconds: from the start of the process until the first batch.
      few: the same on 1,000 rows.
      imports: seconds of those until all modules were imported.
      private, total, peak: bytes per row.
      files: bytes per row of the files: lines, scan, buckets and orders.
    """

    rows: int
    workers: int
    first: bool
    seconds: float
    few: float
    imports: float
    private: float
    total: float
    peak: float
    files: dict[str, float]


def measure(settings: Settings, folder: Path) -> list[Start]:
    """Starts on synthetic manifests, which are written below `folder` and removed."""
    worker_counts = [int(number) for number in settings.workers.split(",")]
    few: dict[tuple[int, bool], dict[str, float]] = {}
    starts = []
    for rows in (_FEW, *(int(number) for number in settings.rows.split(","))):
        place = folder / str(rows)
        _write(place, rows)
        for number, workers in enumerate(worker_counts):
            for first in (True, False) if number == 0 else (False,):
                kind = (workers, first)
                measured = _starts(place, workers, first, settings.rounds)
                if rows == _FEW:
                    few[kind] = measured
                else:
                    starts.append(_compared(measured, few[kind], rows, workers, first, place))
        shutil.rmtree(place)
    return starts


def table(starts: list[Start]) -> str:
    """The starts as a table for a terminal, and what they say of 100,000,000 rows."""
    lines = [
        f"{'rows':>12}{'workers':>9}{'start':>7}{'first batch':>13}{'imports':>10}"
        f"{'private':>10}{'in all':>8}{'peak':>7}   bytes per row of files"
    ]
    for start in starts:
        files = ", ".join(f"{name} {size:.1f}" for name, size in start.files.items())
        lines.append(
            f"{start.rows:>12,}{start.workers:>9}{'first' if start.first else 'later':>7}"
            f"{start.seconds:>11.1f} s{start.imports:>8.1f} s{start.private:>10.1f}{start.total:>8.1f}"
            f"{start.peak:>7.1f}   {files}"
        )
    for workers, first in dict.fromkeys((start.workers, start.first) for start in starts):
        most = max(
            (start for start in starts if (start.workers, start.first) == (workers, first)),
            key=lambda start: start.rows,
        )
        seconds, total = extrapolated(most, _TARGET), most.total
        verdict = "" if seconds <= GOAL_SECONDS and total <= GOAL_BYTES else "  short"
        lines.append(
            f"{_TARGET:,} rows, {'first' if first else 'later'} start, {workers} workers, extrapolated: "
            f"{seconds:.0f} s to the first batch (goal {GOAL_SECONDS:.0f}), {total:.1f} bytes per row in all "
            f"(goal {GOAL_BYTES:.0f}){verdict}"
        )
    return "\n".join(lines)


def extrapolated(start: Start, target: int) -> float:
    """Seconds at `target` rows: those of a start on few rows, and what further rows took in proportion."""
    return start.few + max(start.seconds - start.few, 0.0) * target / start.rows


def record(starts: list[Start], settings: Settings) -> dict[str, Any]:
    """The starts and settings, for JSON."""
    return harness.record([], settings) | {
        "starts": [dataclasses.asdict(start) for start in starts]
    }


def _write(folder: Path, rows: int) -> None:
    """A manifest over a few pictures, and the index of its scan, with sizes as photographs have them."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(_PICTURES):
        picture = noise_picture(Size(128, 128), random)
        Image.fromarray(picture).save(folder / f"{number}.jpg")
    path = folder / "manifest.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for begin in range(0, rows, 100_000):
            file.writelines(
                f'{{"image": "{i % _PICTURES}.jpg", "caption": "a photograph of noise, number {i:09d}"}}\n'
                for i in range(begin, min(begin + 100_000, rows))
            )
    manifest, tokenizer = Manifest(path, index=folder / "indexes"), Tokenizer()
    columns = (
        random.integers(*extent, rows, dtype=np.uint16) for extent in ((256, 2048), (256, 2048))
    )
    height, width = columns
    media, text = np.ones(rows, np.uint8), random.integers(8, 120, rows, np.uint8)
    index = index_of(manifest, "t2i", tokenizer, index=str(folder / "indexes"))
    index.write(ExampleMetadata(height, width, media, text, {}))


def _starts(folder: Path, workers: int, first: bool, rounds: int) -> dict[str, float]:
    """Medians of what new processes measured."""
    measured = []
    for _ in range(rounds):
        if first:
            shutil.rmtree(folder / "cache", ignore_errors=True)
        measured.append(_start(folder, workers))
    return {key: statistics.median(one[key] for one in measured) for key in measured[0]}


def _start(folder: Path, workers: int) -> dict[str, Any]:
    """What a new process measured."""
    code = f"from tuna_jax.perf.index_start import start; start({str(folder)!r}, {workers}, {time.time()!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a start failed: {done.stderr.strip().split(chr(10))[-1]}")
    return json.loads(done.stdout.strip().split("\n")[-1])


def _compared(
    measured: dict[str, Any],
    few: dict[str, Any],
    rows: int,
    workers: int,
    first: bool,
    folder: Path,
) -> Start:
    def per_row(key: str) -> float:
        return (measured[key] - few[key]) / (rows - _FEW)

    sizes: dict[str, float] = dict.fromkeys(("lines", "scan", "buckets", "order"), 0.0)
    for path in [*(folder / "indexes").iterdir(), *(folder / "cache" / "orders").iterdir()]:
        kind = path.name.split("-")[0]
        if kind in sizes:
            sizes[kind] += path.stat().st_size / rows
    return Start(
        rows,
        workers,
        first,
        measured["seconds"],
        few["seconds"],
        measured["imports"],
        per_row("private"),
        per_row("total"),
        per_row("peak"),
        sizes,
    )
