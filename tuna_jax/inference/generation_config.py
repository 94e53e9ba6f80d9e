"""Options of the calls that draw and of those that write text; what a call leaves open is the model's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from tuna_jax.flow import EVERYWHERE
from tuna_jax.inference import batching


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How pictures are drawn: the number of solver `steps`, guidance, shift of the grid, solver.

    Attributes:
      count: pictures on the contact sheet that training draws.
      guidance_interval: (low, high), the times of the grid at which guidance is applied; see `images.sample`.
    """

    count: int = 24
    steps: int = 15
    guidance: float = 2.0
    guidance_interval: tuple[float, float] = EVERYWHERE
    shift: float = 3.0
    solver: str = "euler"


class SamplingOptions(TypedDict, total=False):
    """Options of every call that draws. One that is absent or None takes the model's own.

    Attributes:
      seed: of the noise: row i depends on (seed, i). A list has a seed a row,
        which is then drawn as if it were alone; see `rows.keys`.
      negative: what not to draw, for all rows or one a row; the other side of guidance. Default: nothing.
      size: (height, width), multiples of 16.
      guidance: scale; 0 and 1 sample without.
      guidance_interval: (low, high), 0 is noise and 1 is clean: guidance is applied at times of the grid within it
        alone, and the others take half the work.
      steps: solver steps; the time grid has one point more.
      shift: of the time grid.
      solver: 'euler' or 'heun'.
      batch_size: most rows at once.
    """

    seed: batching.Seed | None
    negative: str | Sequence[str] | None
    size: tuple[int, int] | None
    guidance: float | None
    guidance_interval: tuple[float, float] | None
    steps: int | None
    shift: float | None
    solver: str | None
    batch_size: int | None


class DecodingOptions(TypedDict, total=False):
    """Options of every call that writes text. One that is absent or None takes the default.

    Attributes:
      max_new_tokens: most tokens of an answer (128).
      temperature: 0 is greedy (0).
      top_k: sample among this many likeliest tokens; 0 among all (0).
      top_p: sample within this much probability; 1 within all (1).
      seed: of sampling; answer i depends on (seed, i), or on a list's (seed[i], 0).
      template: 'chat' (Qwen2.5's) or 'plain' (one picture, one question); default: what the model was trained with.
      batch_size: most rows at once.
    """

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: batching.Seed | None
    template: str | None
    batch_size: int | None


def check(decoding: Mapping[str, Any]) -> None:
    """Raises ValueError if an option of `DecodingOptions` is out of its range."""
    for name, low, high in (("temperature", 0, np.inf), ("top_k", 0, np.inf), ("top_p", 0, 1)):
        value = decoding.get(name, low)
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}; it must be at least {low} and at most {high}")
    if decoding.get("max_new_tokens", 1) < 1:
        raise ValueError(f"max_new_tokens is {decoding['max_new_tokens']}; it must be at least 1")
