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
    """The contact sheet that training generates every `sample_every` steps, and the sampling defaults of the model.

    Attributes:
      prompts: a prompt per image; without prompts there is no sheet.
      size: 'HEIGHTxWIDTH' of an image; also the default size of `Tuna.load`.
      steps, guidance, edit_guidance, guidance_interval, shift, solver: see
        `inference.generation_config.SamplingSettings`.
    """

    prompts: tuple[str, ...] = ()
    size: str = "512x512"
    steps: int = 49
    guidance: float = 3.0
    edit_guidance: float | None = None
    guidance_interval: tuple[float, float] = EVERYWHERE
    shift: float = 3.0
    solver: str = "euler"

    @property
    def sampling(self) -> SamplingSettings:
        """The sampling settings."""
        return SamplingSettings(
            steps=self.steps,
            guidance=self.guidance,
            edit_guidance=self.edit_guidance,
            guidance_interval=self.guidance_interval,
            shift=self.shift,
            solver=self.solver,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultitaskExperiment(loop.LoopSettings):
    """An experiment file of kind 'multitask': the settings of the training loop, and these.

    Attributes:
      model: a preset and overrides of its fields; see `tuna_jax.config.from_dict`.
      vae: the frozen VAE: weights of Wan 2.2, a converted model, or a file written by `experiments/emoji/vae.py`; empty
        takes the emoji VAE of the package.
      init_from: initial parameters of a new run: the previous stage's workdir, or a folder written by
        `convert from_torch`; empty initialises them randomly. With `lora`, the frozen model, which every start reads.
      data: the streams.
      samples: the contact sheet.
    """

    kind: str = "multitask"
    model: dict
    vae: str = ""
    init_from: str = ""
    data: MultitaskData = MultitaskData()
    samples: SampleGridSettings = SampleGridSettings()


def experiment() -> Any:
    """A `ConfigDict` with the default of every key, for an experiment file to change."""
    return ConfigDict(defaults(MultitaskExperiment))
