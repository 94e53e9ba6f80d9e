"""Settings of every training run."""

from __future__ import annotations

import dataclasses

from tuna_jax.adapters.settings import LoraSettings
from tuna_jax.parallel.mesh import MeshSettings
from tuna_jax.training import metric_writers, optimizer
from tuna_jax.training.augment import InputNoise, Masking
from tuna_jax.training.watchdog import WatchdogSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeSettings:
    """Distribution of training times: sigmoid of a normal variable, shifted towards noise if `shift` (model.md
    section 2).

    Attributes:
      mean, std: of the normal variable.
      shift: whether times are shifted.
    """

    mean: float = 0.0
    std: float = 1.0
    shift: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Evaluation during training; `sweeps/registry.py` lists the tasks.

    Attributes:
      every: interval in steps; 0 turns evaluation off.
      tasks, settings, batch, seed, saved_items: as in a sweep file.
    """

    every: int = 0
    tasks: dict = dataclasses.field(default_factory=dict)
    settings: dict = dataclasses.field(default_factory=dict)
    batch: int = 32
    seed: int = 7
    saved_items: int = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalSaveSettings:
    """Saves on each host's own disk or memory, between checkpoints (`training/local_saves.py`).

    Attributes:
      every: interval in steps; 0 turns them off.
      folder: a folder of this host that outlives the process; "": the environment variable TUNA_JAX_LOCAL_SAVES, or
        else a folder of the system for temporary files.
      keep: number of saves to keep; with 1, a host that is killed while it writes may have none that all others have.
    """

    every: int = 0
    folder: str = ""
    keep: int = 2

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("keep", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"config.local_saves.{name} is {getattr(self, name)}; it must be at least {least}"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Settings of the training loop; trainers add those of model and data.

    Attributes:
      steps: number of updates of the whole run.
      seed: seed of parameters, noise and times.
      optimizer: AdamW or Muon, schedule, freezing, EMA.
      lora: an adapter in place of all parameters (`adapters/settings.py`).
      accumulate: number of parts in which a batch's gradient is computed, one after the other, to save memory.
      flow_weight, text_weight: weights of the two losses.
      time: distribution of training times.
      input_noise: noise on images in questions.
      masking: visual tokens that are hidden.
      mesh: sizes of the mesh axes.
      vae_dtype: compute dtype of the frozen VAE, if the step encodes pixels.
      metric_writers: what receives log lines next to `metrics.jsonl`: "tensorboard", "wandb"
        (`training/metric_writers.py`).
      log_every, checkpoint_every, sample_every: intervals in steps; sample_every=0 turns samples off.
      evaluate: evaluation during training.
      keep: number of checkpoints to keep.
      asynchronous: write checkpoints in the background.
      local_saves: saves on each host's own disk or memory, between checkpoints.
      stop_after_skipped: number of consecutive skipped updates (loss or gradient not finite) after which the run ends
        with an error, checked at log lines; 0 turns this off.
      watchdog: when a run that stands still is reported, and when it ends.
      compile_threads: threads that compile further batch shapes while the first steps run; 0: every shape is compiled
        before the first step; -1: one thread for every 8 cores, at most 4, and none on GPUs, whose compiler tries
        kernels on the device.
      profile_steps: (first, last) step of a profile, written to `profile/` in the workdir; () for none.
      profiler_port: port on which TensorBoard and xprof can take profiles of the running process; 0 for none.
      peak_tflops: peak bfloat16 TFLOP/s of a device, for MFU; 0 looks it up by the device's name.
    """

    steps: int
    seed: int = 0
    optimizer: optimizer.OptimizerSettings = optimizer.OptimizerSettings()
    lora: LoraSettings = LoraSettings()
    accumulate: int = 1
    flow_weight: float = 1.0
    text_weight: float = 0.2
    time: TimeSettings = TimeSettings()
    input_noise: InputNoise = InputNoise()
    masking: Masking = Masking()
    mesh: MeshSettings = MeshSettings()
    vae_dtype: str = "float32"
    metric_writers: tuple = ("tensorboard",)
    log_every: int = 20
    checkpoint_every: int = 500
    sample_every: int = 0
    evaluate: EvaluationSettings = EvaluationSettings()
    keep: int = 3
    asynchronous: bool = True
    local_saves: LocalSaveSettings = LocalSaveSettings()
    stop_after_skipped: int = 100
    watchdog: WatchdogSettings = WatchdogSettings()
    compile_threads: int = -1
    profile_steps: tuple = ()
    profiler_port: int = 0
    peak_tflops: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"config.{name} is {getattr(self, name)}; it must be at least 1")
        profiled = tuple(self.profile_steps)
        if profiled and (
            len(profiled) != 2
            or not all(isinstance(n, int) for n in profiled)
            or not 1 <= profiled[0] <= profiled[1] <= self.steps
        ):
            raise ValueError(
                f"config.profile_steps is {profiled}; it must be two steps (first, last) from 1 to {self.steps}, or ()"
            )
        metric_writers.check(self.metric_writers)
        chosen = self.optimizer.frozen or self.optimizer.trained
        if self.lora.targets and chosen:
            raise ValueError(
                f"config.optimizer.frozen and config.optimizer.trained say what is trained without an adapter, and "
                f"config.lora.targets is {self.lora.targets}; leave {chosen} out, or name further parts in "
                f"config.lora.trained"
            )
        if self.compile_threads < -1:
            raise ValueError(
                f"config.compile_threads is {self.compile_threads}; it must be a number of threads, or -1 (automatic)"
            )
        for name in ("stop_after_skipped", "peak_tflops", "profiler_port"):
            if getattr(self, name) < 0:
                raise ValueError(f"config.{name} is {getattr(self, name)}; it must be at least 0")
