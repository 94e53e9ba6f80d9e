"""Notices that a run stands still: writes the stacks of all threads, and ends the process in the end."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

EXIT_CODE = 75
"""The exit code of a process that the watchdog ends (EX_TEMPFAIL of sysexits.h): a restart may mend it."""
_SMOOTHED = 64  # Steps whose durations are remembered.
_POLL = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchdogSettings:
    """When a run stands still.

    Attributes:
      factor: a step is late after this many times the median duration of a step, but not before `least`.
      least: seconds.
      end: seconds without a step after which the process ends, so that the launcher can start the run again; 0: never.
    """

    factor: float = 20.0
    least: float = 300.0
    end: float = 3600.0

    def __post_init__(self) -> None:
        for name in ("factor", "least"):
            if getattr(self, name) <= 0:
                raise ValueError(
                    f"config.watchdog.{name} is {getattr(self, name)}; it must be above 0"
                )
        if self.end < 0:
            raise ValueError(f"config.watchdog.end is {self.end}; it must be at least 0")


class Watchdog:
    """Watches the steps of this process from a thread; used as a context manager.

    Args:
      settings: when a step is late.
      workdir: receives `stacks/PROCESS.txt`.
      process: the number of this process.
      say: prints a line.
      end: ends the process with a message; by default at once, with EXIT_CODE.
    """

    def __init__(
        self,
        settings: WatchdogSettings,
        workdir: str | Path,
        process: int,
        say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
        end: Callable[[str], None] | None = None,
    ):
        self._settings, self._say, self._end = settings, say, end or _end_now
        self._file = Path(workdir) / "stacks" / f"{process}.txt"
        self._process = process
        self._durations: collections.deque[float] = collections.deque(maxlen=_SMOOTHED)
        self._last, self._step = time.monotonic(), 0
        self._paused = 0
        self._reported = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def step(self, number: int) -> None:
        """Notes that a step was dispatched."""
        now = time.monotonic()
        if self._step:
            self._durations.append(now - self._last)
        self._last, self._step, self._reported = now, number, False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside this context (compiling, saving, evaluating) is not watched."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1
            self._last = time.monotonic()

    def limit(self) -> float:
        """Seconds after which a step is late."""
        median = statistics.median(self._durations) if self._durations else 0.0
        return max(self._settings.least, self._settings.factor * median)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(_POLL):
            late = time.monotonic() - self._last
            if self._paused or not self._step:
                continue
            if late > self.limit() and not self._reported:
                self._reported = True
                self._report(late)
            if 0 < self._settings.end < late:
                self._end(
                    f"error: process {self._process}: no step for {late:.0f} seconds after step {self._step} "
                    f"(config.watchdog.end); the same command resumes from the last checkpoint"
                )
                return

    def _report(self, late: float) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(f"\n=== no step for {late:.0f} s after step {self._step}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        self._say(
            f"process {self._process}: no step for {late:.0f} seconds after step {self._step}; the stacks of its "
            f"threads are in {self._file}"
        )


def _end_now(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)
