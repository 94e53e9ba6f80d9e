"""A profile of some steps, and a port for profiles on demand."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax


class Profile:
    """Takes the profile of steps `steps[0]` to `steps[1]`, both included.

    Args:
      steps: first and last step, or empty.
      port: of the profiler server, on which xprof and TensorBoard can ask for profiles; 0: none.
      workdir: receives `profile/`; open it with `tensorboard --logdir WORKDIR` (package xprof).

    Raises:
      ValueError: the profiler would crash the run: it does where libtpu is installed and there is no TPU (jax 0.10.2,
        libtpu 0.0.42).
    """

    def __init__(self, steps: Sequence[int], port: int, workdir: str | Path):
        self._steps = tuple(steps)
        self.folder = Path(workdir) / "profile"
        self._running = False
        if (steps or port) and find_spec("libtpu") and jax.default_backend() != "tpu":
            raise ValueError(
                "config.profile_steps and config.profiler_port crash a run where libtpu is installed and there is no "
                "TPU; profile in an environment without it (pip uninstall libtpu)"
            )
        if port:
            jax.profiler.start_server(port)

    def begin(self, step: int) -> None:
        """Starts the profile if `step` is the first one."""
        if self._steps and step == self._steps[0]:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # Python's stacks would hide the device's time.
            jax.profiler.start_trace(self.folder, profiler_options=options)
            self._running = True

    def step(self, step: int) -> AbstractContextManager[Any]:
        """Marks what is dispatched as a step, so that xprof knows the times of steps."""
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def end(self, step: int, results: Any) -> bool:
        """Ends the profile after the last step, when its results are computed; returns whether it did."""
        if not self._running or step < self._steps[1]:
            return False
        jax.block_until_ready(results)
        jax.profiler.stop_trace()
        self._running = False
        return True
