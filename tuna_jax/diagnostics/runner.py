"""Runs checks one after the other on all processes, and shows and writes each result as soon as there is one."""

from __future__ import annotations

import dataclasses
import datetime
import faulthandler
import json
import os
import platform
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from tuna_jax.diagnostics import finding as findings
from tuna_jax.diagnostics.context import Context
from tuna_jax.diagnostics.finding import FAIL, Finding
from tuna_jax.diagnostics.processes import Processes, ProcessFailedError
from tuna_jax.utils.atomic_io import atomic_file


@dataclasses.dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
      name: in the table and in `--checks`.
      run: the function; raises if it cannot go on, which is a failure.
      mend: what to do if it raises.
    """

    name: str
    run: Callable[[Context], Finding]
    mend: str


class Report:
    """The table and the JSON file, written by process 0 as checks end.

    Args:
      path: the JSON file.
      details: what else it holds.
      enabled: False in all processes but the first.
      stream: where the table goes; default standard output.
    """

    def __init__(
        self, path: Path, details: dict[str, Any], enabled: bool, stream: IO[str] | None = None
    ) -> None:
        self._path, self._details, self._enabled = path, details, enabled
        self._stream = stream or sys.stdout
        self._width = min(shutil.get_terminal_size((120, 40)).columns, 160)
        self._rows: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._terminal = self._stream.isatty()
        if enabled:
            print(findings.header(self._width), file=self._stream, flush=True)

    @property
    def results(self) -> list[str]:
        """The results so far."""
        return [row["result"] for row in self._rows]

    def progress(self, name: str, number: int, count: int, seconds: float) -> None:
        """Shows on a terminal which check runs."""
        if self._enabled and self._terminal:
            with self._lock:
                text = f"{name}: running for {seconds:.0f} s (check {number} of {count})"
                self._stream.write(f"\r\033[K{text}")
                self._stream.flush()

    def add(self, name: str, finding: Finding, seconds: float, each: Sequence[Any] = ()) -> None:
        """Shows and writes a result.

        Args:
          name: of the check.
          finding: over all processes.
          seconds: that it took.
          each: the findings of all processes, as JSON.
        """
        row = {"check": name, "seconds": round(seconds, 1), **dataclasses.asdict(finding)}
        self._rows.append(row | ({"processes": list(each)} if len(each) > 1 else {}))
        if not self._enabled:
            return
        with self._lock:
            clear = "\r\033[K" if self._terminal else ""
            text = findings.table_row(name, finding, self._width, self._terminal)
            print(f"{clear}{text}", file=self._stream, flush=True)
        self.write()

    def write(self, complete: bool = False) -> None:
        """Writes the JSON file."""
        if not self._enabled:
            return
        content = {**self._details, "complete": complete, "checks": self._rows}
        text = json.dumps(content, indent=1, default=str) + "\n"
        try:
            with atomic_file(self._path) as scratch:
                scratch.write_text(text, encoding="utf-8")
        except OSError as error:  # The storage may be what is broken: the table continues.
            print(f"warning: {self._path} could not be written: {error}", file=sys.stderr)


def details(command: Sequence[str], processes: Processes) -> dict[str, Any]:
    """What the JSON file says of the launch: no value of a variable that could be a secret."""
    shown = ("JAX_", "XLA_", "LIBTPU_", "TPU_", "TUNA_JAX_", "MEGASCALE_", "CUDA_VISIBLE")
    secret = ("TOKEN", "KEY", "SECRET", "PASSWORD")
    return {
        "kind": "doctor",
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "processes": processes.names,
        "machine": {
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        },
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(shown) and not any(word in name for word in secret)
        },
    }


def run(checks: Sequence[Check], context: Context, report: Report, limit: float = 900) -> bool:
    """Runs all checks; every process calls it.

    Args:
      checks: in this order.
      context: for all of them.
      report: receives the results.
      limit: seconds of one check; after it the program ends with what it has, and prints where it stood.

    Returns:
      Whether nothing failed.
    """
    for number, check in enumerate(checks, 1):
        context.processes.begin(check.name)
        begun = time.monotonic()
        with _Watch(check, context, report, number, len(checks), limit):
            own = _run(check, context)
            each = context.processes.finish(dataclasses.asdict(own))
        finding = findings.over_processes(
            [Finding(**values) for values in each], context.processes.names
        )
        report.add(check.name, finding, time.monotonic() - begun, each)
    report.write(complete=True)
    return FAIL not in report.results


def _run(check: Check, context: Context) -> Finding:
    try:
        return check.run(context)
    except ProcessFailedError as error:
        return Finding(result=FAIL, measured=f"stopped, since another process failed: {error}")
    except Exception as error:
        context.processes.failed(_message(error))
        return Finding(
            result=FAIL,
            measured=_message(error),
            mend=check.mend,
            numbers={"traceback": traceback.format_exc()},
        )


def _message(error: Exception) -> str:
    """An error of input as its own sentence; any other with its type."""
    of_input = isinstance(error, (ValueError, OSError)) and str(error)
    return findings.short(error).partition(": ")[2] if of_input else findings.short(error)


class _Watch:
    """Shows progress, and ends a check that never ends: a collective that waits for a failed process, say."""

    def __init__(
        self, check: Check, context: Context, report: Report, number: int, count: int, limit: float
    ):
        self._check, self._context, self._report = check, context, report
        self._number, self._count, self._limit = number, count, limit
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        begun = time.monotonic()
        while not self._done.wait(1):
            seconds = time.monotonic() - begun
            self._report.progress(self._check.name, self._number, self._count, seconds)
            if seconds > self._limit:
                self._end(seconds)

    def _end(self, seconds: float) -> None:
        faulthandler.dump_traceback(all_threads=True)
        failed = "".join(
            f"; failed elsewhere: {text}" for text in self._context.processes.failures()
        )
        finding = Finding(
            result=FAIL,
            measured=f"no end after {seconds:.0f} s{failed}; the stacks are on standard error",
            mend=f"{self._check.mend}\nleave it out with --skip={self._check.name}",
        )
        self._report.add(self._check.name, finding, seconds)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
