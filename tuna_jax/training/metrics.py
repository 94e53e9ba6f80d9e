"""What a run says about itself: `metrics.jsonl`, TensorBoard, and a progress bar.

`metrics.jsonl` holds one JSON object a line with the key `step`. After a resume it is cut back to
the restored step, so that the file of an interrupted run equals that of an uninterrupted one (apart
from the wall-clock entries).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from tuna_jax.training import throughput

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Writes a run's metrics under `workdir`.

    Args:
      workdir: the run's folder; `metrics.jsonl` and `tensorboard/` are made in it.
      steps: length of the run, for the progress bar.
      start: the step the run (re)starts from; later lines of an existing `metrics.jsonl` are
        dropped.
      enabled: False on all hosts but the first: everything is accepted and nothing written.
    """

    def __init__(
        self, workdir: str | Path, *, steps: int, start: int = 0, enabled: bool = True
    ) -> None:
        self._enabled = enabled
        if not enabled:
            return
        from tensorboardX import SummaryWriter

        path = Path(workdir) / METRICS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        truncate(path, start)
        self._file = path.open("a", encoding="utf-8")
        # purge_step makes TensorBoard forget what an interrupted run wrote after the checkpoint.
        self._board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=start + 1)
        self._bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5,
            smoothing=0.05,
        )

    def progress(self, step: int, **shown: float) -> None:
        """Moves the progress bar to `step`; `shown` are the numbers beside it."""
        if not self._enabled:
            return
        if shown:
            self._bar.set_postfix(
                {name: f"{value:.4g}" for name, value in shown.items()}, refresh=False
            )
        self._bar.update(step - self._bar.n)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line of `metrics.jsonl` and one point a curve in TensorBoard. JSON has no NaN: such a
        value is written as null."""
        if not self._enabled:
            return
        line: dict[str, Any] = {"step": step}
        for name, value in values.items():
            number = float(value)
            line[name] = number if abs(number) < float("inf") else None
            self._board.add_scalar(name, number, step)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Sees that what was written is on the disk, or in the bucket that is mounted as one: before a checkpoint."""
        if self._enabled:
            os.fsync(self._file.fileno())

    def say(self, text: str) -> None:
        """A line of text that does not tear the progress bar."""
        if self._enabled:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Flushes and closes everything."""
        if not self._enabled:
            return
        self._bar.close()
        self._file.close()
        self._board.close()


class Stopwatch:
    """Wall-clock entries of log lines: speed since the last line, and minutes since the run first
    began.

    Minutes go on from where the log of an interrupted run ends, so they do not count the time
    between.
    """

    def __init__(self, workdir: str | Path, start: int) -> None:
        path = Path(workdir) / METRICS_FILE
        lines = read(path) if path.exists() else []
        self._before = next((line["minutes"] for line in reversed(lines) if "minutes" in line), 0.0)
        self._begin = self._last = time.monotonic()
        self._step = start

    def read(self, step: int) -> dict[str, float]:
        """`steps_per_second` since the last call and `minutes` of the run so far."""
        now = time.monotonic()
        speed = (step - self._step) / max(now - self._last, 1e-9)
        self._last, self._step = now, step
        return {"steps_per_second": speed, "minutes": self._before + (now - self._begin) / 60}


class Compilations:
    """Counts the programs that XLA compiles, or takes from its cache, in this process from now on."""

    _EVENT = "/jax/core/compile/backend_compile_duration"

    def __init__(self) -> None:
        self._count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: object) -> None:
        del duration_secs, kwargs
        self._count += event == self._EVENT

    def read(self) -> dict[str, float]:
        """`compilations` since the last call: after the first lines of a run's log it should stay 0."""
        count, self._count = self._count, 0
        return {"compilations": float(count)}

    def close(self) -> None:
        """Stops counting."""
        jax.monitoring.unregister_event_duration_listener(self._listen)


# Entries of a line that a resumed run need not repeat.
WALL_CLOCK = ("steps_per_second", "minutes", "compilations", *throughput.NAMES)


def read(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line that a kill cut short is left out."""
    lines = []
    for text in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def truncate(path: str | Path, step: int) -> None:
    """Drops the lines after `step`, and a torn last line; a missing file stays missing. Atomic:
    writes beside, then renames."""
    path = Path(path)
    if not path.exists():
        return
    kept = [line for line in read(path) if line["step"] <= step]
    beside = path.with_suffix(".tmp")
    beside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    os.replace(beside, path)
