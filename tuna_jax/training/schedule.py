"""Learning-rate schedules: linear warm-up, a plateau, and an optional cosine tail to zero."""

from __future__ import annotations

import optax


def warmup_plateau_cosine(peak: float, steps: int, warmup: int, tail: float) -> optax.Schedule:
    """Linear from 0 to `peak` over `warmup` updates, constant, then a cosine to 0 over the last
    `tail` of `steps`.

    Args:
      peak: learning rate of the plateau.
      steps: updates of the whole run.
      warmup: updates of the warm-up.
      tail: share of `steps` that the cosine takes, in [0, 1]; 0 keeps the rate constant to the end.

    Raises:
      ValueError: warm-up and tail overlap, or `tail` is not a share.
    """
    if not 0.0 <= tail <= 1.0:
        raise ValueError(f"the cosine tail is a share of the run between 0 and 1, not {tail}")
    decay = round(steps * tail)
    if warmup + decay > steps:
        room = f", or the tail to at most {(steps - warmup) / steps:.2f}" if warmup < steps else ""
        raise ValueError(
            f"{warmup} warm-up steps and a cosine tail of {decay} steps (config.optimizer.warmup and cosine_tail) do "
            f"not fit into a run of {steps} steps (config.steps); shorten the warm-up to at most {steps - decay}"
            f"{room}, or train longer"
        )
    ramp = optax.linear_schedule(0.0, peak, max(warmup, 1))
    if decay == 0:
        return optax.join_schedules([ramp, optax.constant_schedule(peak)], [warmup])
    return optax.join_schedules(
        [ramp, optax.constant_schedule(peak), optax.cosine_decay_schedule(peak, decay)],
        [warmup, steps - decay],
    )
