"""Configuration of a multitask experiment."""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from tuna_jax.flow import EVERYWHERE
from tuna_jax.inference.generation_config import SamplingSettings
from tuna_jax.trainers.stream_config import MultitaskData
from tuna_jax.training import loop
from tuna_jax.utils.config_parsing import defaults


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleGridSettings:
    """The contact sheet that training draws every `sample_every` steps.

    Attributes:
      prompts: what is drawn.
      size: 'HEIGHTxWIDTH' of a picture, and what `Tuna.load` draws by itself.
      steps, guidance, guidance_interval, shift, solver: see `inference.generation_config.SamplingSettings`.
    """

    prompts: tuple[str, ...] = ()
    size: str = "512x512"
    steps: int = 49
    guidance: float = 3.0
    guidance_interval: tuple[float, float] = EVERYWHERE
    shift: float = 3.0
    solver: str = "euler"

    @property
    def drawing(self) -> SamplingSettings:
        """How to draw."""
        return SamplingSettings(
            steps=self.steps,
            guidance=self.guidance,
            guidance_interval=self.guidance_interval,
            shift=self.shift,
            solver=self.solver,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultitaskExperiment(loop.LoopSettings):
    """An experiment file of kind 'multitask': the loop's settings, and these.

    Attributes:
      model: a preset and overrides of its fields; see `tuna_jax.config.from_dict`.
      vae: the frozen VAE: Wan 2.2's weights, a converted model's, or a file of `experiments/emoji/vae.py`; empty: the
        emoji VAE that ships.
      init_from: where a new run's parameters come from: the previous stage's workdir, or what `convert from_torch`
        wrote. Empty: fresh ones.
      data: the streams. samples: the contact sheet.
    """

    kind: str = "multitask"
    model: dict
    vae: str = ""
    init_from: str = ""
    data: MultitaskData = MultitaskData()
    samples: SampleGridSettings = SampleGridSettings()


def experiment() -> Any:
    """A `ConfigDict` of every key with its default, for an experiment file to change: all can be overridden then."""
    return ConfigDict(defaults(MultitaskExperiment))
