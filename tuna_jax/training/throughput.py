"""What a run gets out of its machines: tokens a second, model FLOPs utilisation, and goodput.

    seconds of steps   = wall clock, less what was spent aside: restoring, compiling, saving, drawing
    tokens_per_second  = positions of all rows (text, visual, padding) / seconds of steps
    mfu                = model FLOPs / (seconds of steps x devices x peak FLOP/s of a device)
    goodput            = seconds of steps / wall clock, since the run was started

Model FLOPs are those of the step without rematerialisation: matrix products and convolutions of the forward and the
backward pass, the frozen VAE and the optimizer, counted over the jaxpr (hardware/flops.py); of a text
loss in chunks, those of tokens with a label.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from tuna_jax.hardware.chips import CHIPS

# What JAX calls a device, and its peak in bfloat16 without sparsity, FLOP/s.
_PEAKS = {
    "TPU v5 lite": CHIPS["v5e"].peak,
    "TPU v5e": CHIPS["v5e"].peak,
    "TPU v5": CHIPS["v5p"].peak,
    "TPU v5p": CHIPS["v5p"].peak,
    "TPU v6 lite": CHIPS["v6e"].peak,
    "TPU v6e": CHIPS["v6e"].peak,
    "TPU7x": CHIPS["tpu7x"].peak / CHIPS["tpu7x"].devices,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_of(device: Any) -> float | None:
    """Peak bfloat16 FLOP/s of a JAX device by its `device_kind`; None: it is not known, as of CPUs."""
    kind = str(device.device_kind)
    # The longest name that fits: 'TPU v5 lite' is no 'TPU v5'; 'NVIDIA H200' also comes with words after it.
    fitting = [name for name in _PEAKS if kind == name or kind.startswith(f"{name} ")]
    return _PEAKS[max(fitting, key=len)] if fitting else None


class Throughput:
    """Counts tokens and FLOPs of steps, and what else takes time.

    Args:
      peak: FLOP/s of all devices of the run together; None: no `mfu` is told.
      begun: `time.monotonic()` when the run was started.
    """

    def __init__(self, peak: float | None, begun: float) -> None:
        self._peak, self._begun = peak, begun
        now = time.monotonic()
        self._since, self._aside_total, self._aside = now, now - begun, 0.0
        self._steps, self._tokens, self._flops = 0, 0, 0

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What happens inside is no step."""
        begin = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - begin
            self._aside += spent
            self._aside_total += spent

    def step(self, tokens: int, flops: int) -> None:
        """A step was taken: tokens and model FLOPs of the whole batch, over all processes."""
        self._steps += 1
        self._tokens += tokens
        self._flops += flops

    def read(self) -> dict[str, float]:
        """`step_seconds`, `tokens_per_second` and, with a peak, `mfu` since the last call; `goodput` of the whole run.

        Only the last of them if there was no step.
        """
        now = time.monotonic()
        wall = max(now - self._begun, 1e-9)
        told = {"goodput": max(wall - self._aside_total, 0.0) / wall}
        if self._steps:
            seconds = max(now - self._since - self._aside, 1e-9)
            told["step_seconds"] = seconds / self._steps
            told["tokens_per_second"] = self._tokens / seconds
            if self._peak:
                told["mfu"] = self._flops / (seconds * self._peak)
        self._since, self._aside = now, 0.0
        self._steps, self._tokens, self._flops = 0, 0, 0
        return told


NAMES = ("goodput", "step_seconds", "tokens_per_second", "mfu")
