"""Throughput of a run: tokens per second, model FLOPs utilisation (MFU), and goodput.

    seconds of steps   = wall clock minus restoring, compiling, saving, sampling and evaluating
    tokens_per_second  = positions of all rows (text, visual, padding) / seconds of steps
    mfu                = model FLOPs / (seconds of steps x devices x peak FLOP/s of a device)
    data_seconds       = seconds per step that the loop waited for the next batch
    goodput            = (seconds of steps - the slowest host's waiting for data) / wall clock, since the start of the
                         process

Model FLOPs are those of the step without rematerialisation: matrix products and convolutions of the forward and the
backward pass, the frozen VAE and the optimizer, counted over the jaxpr (hardware/flops.py); for a text
loss in chunks, only those of tokens with a label.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from tuna_jax.hardware.chips import CHIPS, matching

# `device_kind` of JAX -> peak FLOP/s in bfloat16 without sparsity.
_PEAKS = {kind: chip.peak / chip.devices for chip in CHIPS.values() for kind in chip.kinds} | {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_of(device: Any) -> float | None:
    """Peak bfloat16 FLOP/s of a JAX device by its `device_kind`; None if unknown, as for CPUs."""
    name = matching(str(device.device_kind), _PEAKS)
    return _PEAKS[name] if name else None


class Throughput:
    """Counts tokens and FLOPs of steps, and the time outside of steps.

    Args:
      peak: FLOP/s of all devices of the run together; None: `mfu` is not reported.
      begun: what `clock` returned at the start of the run.
      clock: returns seconds.
    """

    def __init__(
        self, peak: float | None, begun: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._peak, self._begun, self._clock = peak, begun, clock
        now = clock()
        self._since, self._excluded_total, self._excluded = now, now - begun, 0.0
        self._steps, self._tokens, self._flops = 0, 0, 0
        self._waited, self._waited_total = 0.0, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time inside this context is waiting for data."""
        begin = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - begin

    def take_waited(self) -> float:
        """Seconds of `waiting` since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited

    @contextlib.contextmanager
    def excluded(self) -> Iterator[None]:
        """Time inside this context does not count as time of steps."""
        begin = self._clock()
        try:
            yield
        finally:
            spent = self._clock() - begin
            self._excluded += spent
            self._excluded_total += spent

    def step(self, tokens: int, flops: int) -> None:
        """Counts a step: tokens and model FLOPs of the whole batch, over all processes."""
        self._steps += 1
        self._tokens += tokens
        self._flops += flops

    def read(self, waited: float = 0.0) -> dict[str, float]:
        """`step_seconds`, `tokens_per_second` and, with a peak, `mfu` since the last call; `goodput` of the whole run.

        Without a step since the last call, only `goodput`.

        Args:
          waited: seconds that the slowest host waited for data since the last call.
        """
        now = self._clock()
        self._waited_total += waited
        wall = max(now - self._begun, 1e-9)
        values = {"goodput": max(wall - self._excluded_total - self._waited_total, 0.0) / wall}
        if self._steps:
            seconds = max(now - self._since - self._excluded, 1e-9)
            values["step_seconds"] = seconds / self._steps
            values["tokens_per_second"] = self._tokens / seconds
            if self._peak:
                values["mfu"] = self._flops / (seconds * self._peak)
        self._since, self._excluded = now, 0.0
        self._steps, self._tokens, self._flops = 0, 0, 0
        return values


NAMES = ("goodput", "step_seconds", "tokens_per_second", "mfu")
WAITING = ("data_seconds", "data_seconds_max", "data_process")
