"""Checks of the options of generation and decoding, wherever they come from: flags, request files, Python, sweeps.

A value passes if it means something; otherwise a ValueError names the option, its value and what it may be. So no
number that is not finite, and none that makes one, reaches the model.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tuna_jax.data.media.video import check_frames
from tuna_jax.utils import seeds
from tuna_jax.utils.text_files import check_text

TEMPLATES = ("chat", "plain")
SOLVERS = ("euler", "heun")

LARGEST_GUIDANCE = 100.0
SMALLEST_SHIFT, LARGEST_SHIFT = 0.01, 100.0
"""Beyond these nearly all steps are at one end of the trajectory."""
LARGEST_SIDE = 16384
LARGEST_STEPS = 10_000
LARGEST_TOKENS = 1_000_000
LARGEST_FRAMES = 4001
LARGEST_FPS = 1000.0
SMALLEST_TEMPERATURE, LARGEST_TEMPERATURE = 1e-6, 100.0
"""Smaller ones than the first, except 0, overflow the logits; 0 is greedy."""


def number(name: str, value: Any, low: float, high: float, what: str = "") -> float:
    """A finite number within [low, high], as a float."""
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(
        value, bool
    )
    # An integer of Python may be too large for a float; comparing is safe.
    if not is_number or not low <= value <= high:
        raise ValueError(
            f"{name} is {_short(value)}; it must be {what or f'a number from {low:g} to {high:g}'}"
        )
    return float(value)


def whole(name: str, value: Any, low: int, high: int) -> int:
    """A whole number within [low, high]."""
    try:
        result = operator.index(value)
    except TypeError:
        result = low - 1
    if isinstance(value, (bool, np.bool_)) or not low <= result <= high:
        raise ValueError(
            f"{name} is {_short(value)}; it must be a whole number from {low} to {high}"
        )
    return result


def text(name: str, value: Any) -> str:
    """A string that is Unicode text.

    Raises:
      ValueError: it is not a string, or it has half of a surrogate pair, as a damaged JSON escape or an argument in
        another encoding than UTF-8 gives.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name} is {_short(value)}; it must be a string")
    return check_text(value, name)


def texts(name: str, value: Any) -> str | list[str]:
    """A text, or a list of texts."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return text(name, value)
    return [text(f"{name}[{index}]", item) for index, item in enumerate(value)]


def size(name: str, value: Any) -> tuple[int, int]:
    """(height, width) in pixels; `VAEConfig.latent_shape` checks that the VAE can make it."""
    if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray)):
        value = (value,)
    if len(value) != 2:
        raise ValueError(f"{name} is {_short(value)}; it must be (height, width) in pixels")
    height, width = (whole(name, side, 1, LARGEST_SIDE) for side in value)
    return height, width


def interval(name: str, value: Any) -> tuple[float, float]:
    """(low, high) with 0 <= low <= high <= 1."""
    if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray)):
        value = (value,)
    if len(value) == 2:
        low, high = (number(name, end, 0.0, 1.0) for end in value)
        if low <= high:
            return low, high
    raise ValueError(
        f"{name} is {_short(value)}; it must be two times, low and high, with 0 (noise) <= low <= high <= 1 (clean)"
    )


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of some words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"unknown {name} {_short(value)}; choose one of {', '.join(choices)}")
    return value


def seed_pairs(seed: Any) -> int | list[tuple[int, int]]:
    """A `Seed` in one form: one seed, or (seed, index) of each row.

    Raises:
      ValueError: an entry is not a whole number from 0 to 2**64 - 1, or an index not one to 2**32 - 1.
    """
    is_vector = isinstance(seed, np.ndarray) and seed.ndim > 0
    if isinstance(seed, (str, bytes)) or not (is_vector or isinstance(seed, Sequence)):
        return seeds.check(seed)
    pairs = []
    for row, entry in enumerate(seed):
        where = f"seed[{row}]"
        if isinstance(entry, (tuple, list)):
            if len(entry) != 2:
                raise ValueError(f"{where} is {entry!r}; it must be a seed, or a pair (seed, row)")
            pairs.append((seeds.check(entry[0], where), seeds.check_index(entry[1], where)))
        else:
            pairs.append((seeds.check(entry, where), 0))
    return pairs


def _seed(name: str, value: Any) -> Any:
    del name  # `seed_pairs` names it.
    return seed_pairs(value)


def _shift(name: str, value: Any) -> float:
    return number(name, value, SMALLEST_SHIFT, LARGEST_SHIFT)


def _temperature(name: str, value: Any) -> float:
    if isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and value == 0:
        return 0.0
    words = f"0, or a number from {SMALLEST_TEMPERATURE:g} to {LARGEST_TEMPERATURE:g}"
    return number(name, value, SMALLEST_TEMPERATURE, LARGEST_TEMPERATURE, words)


_Check = Callable[[str, Any], Any]

SAMPLING: dict[str, _Check] = {
    "seed": _seed,
    "negative": texts,
    "size": size,
    "guidance": lambda name, value: number(name, value, 0.0, LARGEST_GUIDANCE),
    "image_guidance": lambda name, value: number(name, value, 0.0, LARGEST_GUIDANCE),
    "guidance_interval": interval,
    "steps": lambda name, value: whole(name, value, 1, LARGEST_STEPS),
    "shift": _shift,
    "solver": lambda name, value: choice(name, value, SOLVERS),
    "batch_size": lambda name, value: whole(name, value, 1, 2**31 - 1),
}
"""The options of `SamplingOptions`."""

DECODING: dict[str, _Check] = {
    "max_new_tokens": lambda name, value: whole(name, value, 1, LARGEST_TOKENS),
    "temperature": _temperature,
    "top_k": lambda name, value: whole(name, value, 0, 2**31 - 1),
    "top_p": lambda name, value: number(name, value, 0.0, 1.0),
    "seed": _seed,
    "template": lambda name, value: choice(name, value, TEMPLATES),
    "batch_size": SAMPLING["batch_size"],
}
"""The options of `DecodingOptions`."""


def check(options: Mapping[str, Any], checks: Mapping[str, _Check]) -> dict[str, Any]:
    """The options that are given and not None, as plain values.

    Args:
      options: by name.
      checks: `SAMPLING` or `DECODING`.

    Raises:
      ValueError: an unknown option, or a value that means nothing; the option is named.
    """
    unknown = [name for name in options if name not in checks]
    if unknown:
        raise ValueError(
            f"unknown option {_short(unknown[0])}; the options are {', '.join(checks)}"
        )
    return {name: checks[name](name, value) for name, value in options.items() if value is not None}


def frames(value: Any, step: int = 4) -> int:
    """A number of frames, 1 + `step` k."""
    count = whole("frames", value, 1, LARGEST_FRAMES)
    check_frames(count, step)
    return count


def fps(value: Any) -> float:
    """Frames per second of a written video."""
    words = f"a number above 0, to {LARGEST_FPS:g}"
    return number("fps", value, 1e-3, LARGEST_FPS, words)


def _short(value: Any) -> str:
    """The value as messages show it: not megabytes of it."""
    try:
        shown = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits.
        shown = f"a {type(value).__name__} that is too long to show"
    return shown if len(shown) <= 120 else shown[:117] + "..."
