"""Options of image generation and of text decoding. An option that a call leaves out takes the model's default."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from tuna_jax.config import TunaConfig
from tuna_jax.flow import EVERYWHERE
from tuna_jax.inference import batching, option_checks
from tuna_jax.utils import old_names


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How images are sampled; see `flow_sampler.sample`.

    Attributes:
      count: number of images on the contact sheet that training writes.
      steps: solver steps.
      guidance: guidance scale.
      edit_guidance: guidance scale of edits; None: `guidance`.
      guidance_interval: (low, high), the times of the grid at which guidance is applied.
      shift: shift of the time grid; 1 is a uniform grid.
      solver: 'euler' or 'heun'.

    Raises:
      ValueError: a number that is not finite or out of range, or an unknown solver; the field is named.
    """

    count: int = 24
    steps: int = 15
    guidance: float = 2.0
    edit_guidance: float | None = None
    guidance_interval: tuple[float, float] = EVERYWHERE
    shift: float = 3.0
    solver: str = "euler"

    def __post_init__(self) -> None:
        option_checks.whole("count", self.count, 0, 2**31 - 1)
        for name in ("steps", "guidance", "guidance_interval", "shift", "solver"):
            option_checks.SAMPLING[name](name, getattr(self, name))
        if self.edit_guidance is not None:
            option_checks.SAMPLING["guidance"]("edit_guidance", self.edit_guidance)

    def of_edits(self) -> SamplingSettings:
        """The settings of edits."""
        if self.edit_guidance is None:
            return self
        return dataclasses.replace(self, guidance=self.edit_guidance)


def of_released_model(config: TunaConfig) -> SamplingSettings:
    """The sampling that the released code's launchers choose for a model of this kind (model.md sections 9 and 12)."""
    if config.vae is not None:
        return SamplingSettings(steps=49, guidance=3.0)
    if config.has_encoder:  # Tuna-R
        return SamplingSettings(steps=50, guidance=4.0, edit_guidance=5.0, shift=1.0, solver="heun")
    return SamplingSettings(steps=50, guidance=3.0, edit_guidance=2.0, shift=1.0)


class SamplingOptions(TypedDict, total=False):
    """Options of every call that generates images or clips. One that is absent or None takes the model's default.

    Attributes:
      seed: seed of the noise, from 0 to 2**64 - 1: row i depends on (seed, i). A list has a seed per row, and each row
        is then generated as in a call of its own; see `batching.keys`.
      negative: negative prompt, what not to generate: one for all rows, or one per row. Default: the empty prompt.
      size: (height, width) in pixels, multiples of 16.
      guidance: guidance scale; 0 and 1 sample without guidance.
      image_guidance: guidance scale of the images that are given (edits, and clips with a first frame); with another
        one than 1, the default, a step takes three branches in place of two: see `flow.guided_by_image_and_text`.
      guidance_interval: (low, high), where 0 is noise and 1 is clean: guidance is applied only at times of the grid
        within the interval; the other steps take half the work.
      steps: solver steps; the time grid has one point more.
      shift: shift of the time grid.
      solver: 'euler' or 'heun'.
      batch_size: the largest number of rows per batch.
    """

    seed: batching.Seed | None
    negative: str | Sequence[str] | None
    size: tuple[int, int] | None
    guidance: float | None
    image_guidance: float | None
    guidance_interval: tuple[float, float] | None
    steps: int | None
    shift: float | None
    solver: str | None
    batch_size: int | None


class DecodingOptions(TypedDict, total=False):
    """Options of every call that generates text. One that is absent or None takes the default.

    Attributes:
      max_new_tokens: the largest number of tokens of an answer. Default: 128.
      temperature: sampling temperature; 0 is greedy. Default: 0.
      top_k: sample among the `top_k` likeliest tokens; 0: among all. Default: 0.
      top_p: sample within the nucleus of this probability; 1: among all tokens. Default: 1.
      seed: seed of sampling: answer i depends on (seed, i), or on (seed[i], 0) if `seed` is a list.
      template: 'chat' (Qwen2.5's) or 'plain' (one image, one question). Default: the template of training.
      batch_size: the largest number of rows per batch.
    """

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: batching.Seed | None
    template: str | None
    batch_size: int | None


def sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `SamplingOptions` that are given and not None, checked, with today's names.

    Raises:
      ValueError: an unknown option, or a value that means nothing; the option is named.
    """
    if options.get("points") is not None:  # Of earlier versions: one more than the steps.
        option_checks.whole("points", options["points"], 2, option_checks.LARGEST_STEPS + 1)
    return option_checks.check(old_names.sampling_options(options), option_checks.SAMPLING)


def decoding(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `DecodingOptions` that are given and not None, checked.

    Raises:
      ValueError: an unknown option, or a value that means nothing; the option is named.
    """
    return option_checks.check(options, option_checks.DECODING)
