"""Settings that every training run has."""

from __future__ import annotations

import dataclasses

from tuna_jax.parallel.mesh import MeshSettings
from tuna_jax.training import optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeSettings:
    """Training times: sigmoid of a normal draw, shifted toward noise if `shift` (model.md section
    2)."""

    mean: float = 0.0
    std: float = 1.0
    shift: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Evaluation in training; sweeps/registry.py knows the tasks.

    Attributes:
      every: steps; 0: never.
      tasks, settings, batch, seed, saved_items: as of a sweep (`sweeps.runner.SweepSettings`).
    """

    every: int = 0
    tasks: dict = dataclasses.field(default_factory=dict)
    settings: dict = dataclasses.field(default_factory=dict)
    batch: int = 32
    seed: int = 7
    saved_items: int = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """What the loop itself needs to know; models and data come ready-made.

    Attributes:
      steps: updates of the whole run.
      seed: seed of parameters, noise and times.
      optimizer: AdamW or Muon, schedule, freezing, EMA.
      accumulate: parts that a batch's gradient is computed in, one after the other, for less memory.
      flow_weight, text_weight: weights of the two losses.
      time: how training times are drawn.
      mesh: sizes of the mesh axes.
      vae_dtype: what the frozen VAE computes in, where the step encodes pixels.
      log_every, checkpoint_every, sample_every: in steps; 0 draws no samples.
      evaluate: tasks that the run is measured on while it goes on.
      keep: checkpoints that are kept.
      asynchronous: write checkpoints in the background.
      stop_after_skipped: the run ends with an error when so many updates in a row were skipped, because the loss or a
        gradient was not finite; seen at log lines. 0: never.
      peak_tflops: bfloat16 TFLOP/s of a device, for MFU; 0: what is known of the device by its name.
    """

    steps: int
    seed: int = 0
    optimizer: optimizer.OptimizerSettings = optimizer.OptimizerSettings()
    accumulate: int = 1
    flow_weight: float = 1.0
    text_weight: float = 0.2
    time: TimeSettings = TimeSettings()
    mesh: MeshSettings = MeshSettings()
    vae_dtype: str = "float32"
    log_every: int = 20
    checkpoint_every: int = 500
    sample_every: int = 0
    evaluate: EvaluationSettings = EvaluationSettings()
    keep: int = 3
    asynchronous: bool = True
    stop_after_skipped: int = 100
    peak_tflops: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is at least 1")
        for name in ("stop_after_skipped", "peak_tflops"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it is at least 0")
