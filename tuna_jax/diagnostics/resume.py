"""Check `resume`: a short training run that is killed and started again has the same losses, to the bit.

On one process two others train, one after the other, on the devices of this one, which must not use them yet: the first
kills itself (SIGKILL) after a checkpoint. On several processes the run stops in the same way on all of them, without
saving, and starts again in the same processes. The run is a tiny emoji model's.

`python -m tuna_jax.diagnostics.resume FILE` is what the other processes run; see `_main`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from tuna_jax.diagnostics.context import TINY_STEPS, Context, call_trainer, tiny_experiment
from tuna_jax.diagnostics.finding import FAIL, PASS, Finding, short
from tuna_jax.diagnostics.processes import Processes
from tuna_jax.parallel import distributed
from tuna_jax.training import host_waits, loop
from tuna_jax.training.checkpoints import finished_checkpoints
from tuna_jax.training.metrics import METRICS_FILE

STOP_BEFORE = 10
"""The step that the first run does not take. The one before it is not logged yet: log lines are one step late."""
_PATIENCE = 600  # Seconds for a run.
_LOSSES = ("loss", "flow_loss", "text_loss", "gradient_norm")
_MEND = (
    "do not rely on checkpoints here. If losses differ by rounding only: on GPUs set "
    "XLA_FLAGS=--xla_gpu_deterministic_ops=true; otherwise send us the JSON file"
)


class StoppedError(Exception):
    """The first run has come as far as it should."""


def resume(context: Context) -> Finding:
    """Trains, stops, trains again, and compares the losses of steps that both have computed."""
    trainer = context.trainer("emoji")
    if context.processes.count == 1:
        lines = by_killing(trainer, Path(context.scratch) / "resume")
    else:
        if "://" in context.folder:
            raise ValueError(
                f"{context.folder} is no folder, and several processes train in one that they share; mount the bucket"
            )
        lines = by_stopping(trainer, Path(context.folder) / "resume", context.processes)
        lines = context.processes.gather(lines)[0]
    return compare(*lines, killed=context.processes.count == 1)


def compare(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], killed: bool = True
) -> Finding:
    """Compares log lines.

    Args:
      before: of the first run.
      after: of the second, from its first step on.
      killed: whether the first was killed.
    """
    old = {line["step"]: line for line in before}
    new = {line["step"]: line for line in after}
    common = sorted(old.keys() & new.keys())
    kind = "killed" if killed else "stopped"
    first = min(new, default=0)
    if not common or first < 2 or max(new) != TINY_STEPS:
        text = (
            f"{kind} before step {STOP_BEFORE}, started again with step {first} of {TINY_STEPS}: no step is in both "
            f"logs, or not the last"
        )
        return Finding(result=FAIL, measured=text, mend=_MEND)
    differ = [(step, key) for step in common for key in _LOSSES
              if old[step].get(key) != new[step].get(key)]  # fmt: skip
    numbers = {"before": list(before), "after": list(after)}
    if differ:
        step, key = differ[0]
        text = f"at step {step} {key} is {new[step].get(key)} after the restart, and was {old[step].get(key)}"
        return Finding(result=FAIL, measured=text, mend=_MEND, numbers=numbers)
    return Finding(
        result=PASS,
        measured=f"{kind} before step {STOP_BEFORE}, continued from step {first - 1}: losses of steps {common[0]} to "
        f"{common[-1]} are equal to the bit; ended at step {TINY_STEPS}",
        numbers=numbers,
    )


def by_killing(trainer: str, workdir: Path) -> tuple[list[Any], list[Any]]:
    """Both runs in processes of their own; returns the log lines of the first, and those of the second.

    Raises:
      RuntimeError: a run did not end as it should; the message has its last lines.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    logs = []
    for stop_before, expected in ((STOP_BEFORE, -signal.SIGKILL), (0, 0)):
        settings = {"trainer": trainer, "workdir": str(workdir), "stop_before": stop_before}
        file = workdir / "settings.json"
        file.write_text(json.dumps(settings))
        with (workdir / "output.log").open("w+", encoding="utf-8") as output:
            command = [sys.executable, "-m", "tuna_jax.diagnostics.resume", str(file)]
            done = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, timeout=_PATIENCE, check=False
            )
            if done.returncode != expected:
                output.seek(0)
                text = output.read().strip()
                last = text.splitlines()[-1] if text else "it printed nothing"
                error = RuntimeError(f"a training run ended with {done.returncode}: {last[-250:]}")
                error.add_note(text[-5000:])
                raise error
        logs.append(_log(workdir))
    restored = _restored_step(workdir)
    return logs[0], [line for line in logs[1] if line["step"] > restored]


def by_stopping(trainer: str, workdir: Path, processes: Processes) -> tuple[list[Any], list[Any]]:
    """Both runs in this process, and in all others at the same time."""
    logs = []
    for stop_before in (STOP_BEFORE, 0):
        with contextlib.suppress(StoppedError):
            _train(trainer, workdir, stop_before, _stop)
        processes.gather(None)
        logs.append(_log(workdir) if processes.index == 0 else [])
        if processes.index == 0:
            host_waits.forget()
        processes.gather(None)
    restored = _restored_step(workdir) if processes.index == 0 else 0
    return logs[0], [line for line in logs[1] if line["step"] > restored]


def _stop(workdir: Path) -> None:
    del workdir
    raise StoppedError


def _kill(workdir: Path) -> None:
    """Kills this process as soon as its checkpoint is complete."""
    end = time.monotonic() + _PATIENCE
    while not finished_checkpoints(workdir) and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


class _StoppingIterator(Iterator[Any]):
    """Batches, up to a number.

    Args:
      iterator: the run's.
      stop_before: the number of the batch that is not taken, counted from 1 in this process; 0: none.
      stop: called in its place.

    Attributes:
      taken: number of batches that were taken.
    """

    def __init__(self, iterator: Any, stop_before: int, stop: Callable[[], None]) -> None:
        self._iterator, self._stop_before, self._stop = iterator, stop_before, stop
        self.taken = 0

    def __next__(self) -> Any:
        if self.taken + 1 == self._stop_before:
            self._stop()
        self.taken += 1
        return next(self._iterator)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)


def _train(trainer: str, workdir: Path, stop_before: int, stop: Callable[[Path], None]) -> None:
    def train_loop(settings: Any, config: Any, folder: Any, iterator: Any, **more: Any) -> bool:
        stopping = _StoppingIterator(iterator, stop_before, functools.partial(stop, workdir))
        reached = loop.train(settings, config, folder, stopping, **more)
        if jax.process_index() == 0:
            (workdir / _TAKEN).write_text(str(stopping.taken))
        return reached

    call_trainer(trainer, tiny_experiment(), str(workdir), train_loop)


_TAKEN = "steps_taken"


def _restored_step(workdir: Path) -> int:
    """The step that the second run, which took all later ones, has restored."""
    return TINY_STEPS - int((workdir / _TAKEN).read_text())


def _log(workdir: Path) -> list[dict[str, Any]]:
    text = (workdir / METRICS_FILE).read_text(encoding="utf-8")
    kept = ("step", *_LOSSES)
    lines = [json.loads(line) for line in text.splitlines()]
    return [{key: line[key] for key in kept if key in line} for line in lines]


def _main(file: str) -> int:
    """Trains as a JSON file says, in a process of its own."""
    from tuna_jax.utils import compile_cache

    settings = json.loads(Path(file).read_text())
    compile_cache.enable()
    try:
        _train(settings["trainer"], Path(settings["workdir"]), settings["stop_before"], _kill)
    except Exception as error:
        if isinstance(error, (ValueError, OSError)):
            distributed.end(f"error: {short(error)}")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
