"""The log of a run: `metrics.jsonl`, other writers such as TensorBoard, and a progress bar.

`metrics.jsonl` holds one JSON object per line with the key `step`. A resumed run first truncates it to the restored
step, so that the file of an interrupted run equals that of an uninterrupted one (except for wall-clock entries).

In a mounted bucket a file is stored when it is closed, as a whole. There the log and TensorBoard's file are closed with
every checkpoint, and the log continues in `metrics-STEP.jsonl` once its file has a mebibyte; `read` reads all of them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from tuna_jax.training import metric_writers, throughput
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.file_systems import renames_atomically
from tuna_jax.utils.text_files import read_log

METRICS_FILE = "metrics.jsonl"
_SEGMENT = 1 << 20  # Bytes.


class MetricsLog:
    """Writes a run's metrics under `workdir`.

    Args:
      workdir: the run's folder, for `metrics.jsonl` and what other writers have, such as `tensorboard/`.
      steps: number of steps of the run, for the progress bar.
      start: the step from which the run starts or resumes; later lines of an existing `metrics.jsonl` are removed.
      enabled: False in all processes except the first: all methods do nothing.
      bar: whether to show a progress bar.
      writers: names of `metric_writers.WRITERS`.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        steps: int,
        start: int = 0,
        enabled: bool = True,
        bar: bool = True,
        writers: Sequence[str] = ("tensorboard",),
    ) -> None:
        self._enabled = enabled
        if not enabled:
            return
        path = Path(workdir) / METRICS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        truncate(path, start)
        self._path, self._file = path, None
        self._closes = not renames_atomically(path.parent)
        self._writers = [metric_writers.WRITERS[name](path.parent, start) for name in writers]
        self._bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5,
            smoothing=0.05,
            disable=not bar,
        )

    def progress(self, step: int, **values: float) -> None:
        """Moves the progress bar to `step` and displays `values` next to it."""
        if not self._enabled:
            return
        if values:
            self._bar.set_postfix(
                {name: f"{value:.4g}" for name, value in values.items()}, refresh=False
            )
        self._bar.update(step - self._bar.n)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a line of `metrics.jsonl`, and a point per value to the other writers.

        JSON has no NaN and no infinity: they become null.
        """
        if not self._enabled:
            return
        line: dict[str, Any] = {"step": step}
        for name, value in values.items():
            number = float(value)
            line[name] = number if abs(number) < float("inf") else None
        for writer in self._writers:
            writer.write(step, {name: float(value) for name, value in values.items()})
        if self._file is None:
            self._file = self._segment(step).open("a", encoding="utf-8")
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def sync(self, step: int) -> None:
        """Puts what was logged on the disk, or in a mounted bucket; called before the checkpoint of `step` is saved."""
        if not self._enabled or self._file is None:
            return
        os.fsync(self._file.fileno())
        if self._closes:
            self._file.close()
            self._file = None
            for writer in self._writers:
                writer.sync(step)

    def _segment(self, step: int) -> Path:
        """The file that a line of `step` is appended to."""
        last = segments(self._path)[-1]
        if self._closes and last.exists() and last.stat().st_size >= _SEGMENT:
            return self._path.with_name(f"{self._path.stem}-{step:08d}{self._path.suffix}")
        return last

    def say(self, text: str) -> None:
        """Prints a line of text without disturbing the progress bar."""
        if self._enabled:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Flushes and closes everything."""
        if not self._enabled:
            return
        self._bar.close()
        if self._file is not None:
            self._file.close()
        for writer in self._writers:
            writer.close()


class Stopwatch:
    """Wall-clock entries of log lines: speed since the last line, and minutes of the whole run.

    Minutes continue from the end of an interrupted run's log, so the time between the two runs does not count.

    Args:
      workdir: the run's folder.
      start: the step from which the run starts or resumes.
      clock: returns seconds.
    """

    def __init__(
        self, workdir: str | Path, start: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        path = Path(workdir) / METRICS_FILE
        lines = read(path) if path.exists() else []
        self._before = next((line["minutes"] for line in reversed(lines) if "minutes" in line), 0.0)
        self._clock = clock
        self._begin = self._last = clock()
        self._step = start

    def read(self, step: int) -> dict[str, float]:
        """`steps_per_second` since the last call and `minutes` of the run so far."""
        now = self._clock()
        speed = (step - self._step) / max(now - self._last, 1e-9)
        self._last, self._step = now, step
        return {"steps_per_second": speed, "minutes": self._before + (now - self._begin) / 60}


class Compilations:
    """Counts the programs that XLA compiles, or reads from its cache, in this process."""

    _EVENT = "/jax/core/compile/backend_compile_duration"

    def __init__(self) -> None:
        self._count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: object) -> None:
        del duration_secs, kwargs
        self._count += event == self._EVENT

    def read(self) -> dict[str, float]:
        """`compilations` since the last call; it should be 0 after the first log lines of a run."""
        count, self._count = self._count, 0
        return {"compilations": float(count)}

    def close(self) -> None:
        """Stops counting."""
        jax.monitoring.unregister_event_duration_listener(self._listen)


# Entries of a log line that differ between a resumed and an uninterrupted run.
WALL_CLOCK = (
    *("steps_per_second", "minutes", "compilations"),
    *throughput.NAMES,
    *throughput.WAITING,
)


def segments(path: Path) -> list[Path]:
    """`metrics.jsonl` and the files in which it continues, in order."""
    return [path, *sorted(path.parent.glob(f"{path.stem}-*{path.suffix}"))]


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; an incomplete last line (from a killed process) is ignored."""
    return [line for segment in segments(Path(path)) for line in read_log(segment)]


def truncate(path: str | Path, step: int) -> None:
    """Removes the lines after `step`, and an incomplete last line, atomically; a missing file stays missing."""
    for segment in segments(Path(path)):
        if not segment.exists():
            continue
        kept = [line for line in read_log(segment) if line["step"] <= step]
        with atomic_file(segment) as scratch:
            scratch.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
