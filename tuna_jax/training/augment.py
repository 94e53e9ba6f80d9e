"""What training does to visual tokens besides the noise of the flow: noise on images in questions, and hidden
tokens (model.md sections 12 and 13). Both are for models that work on pixels; inference never does either."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputNoise:
    """Noise on images in questions: rows without an image to generate.

    Attributes:
      probability: of an image to be noised; 0 turns it off. The released pixel models take 0.1.
      level: largest noise level a; the image is taken at time `1 - a`, a uniform in [0, level].
    """

    probability: float = 0.0
    level: float = 0.1

    def __post_init__(self) -> None:
        for name in ("probability", "level"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"config.input_noise.{name} is {value}; it must be in [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masking:
    """Visual tokens that the model's mask token replaces, in every image.

    The share of an image's tokens is uniform in [low, high]; a negative one hides none. The released Tuna-2 takes -0.7
    and 0.3, so that 70 % of the images stay whole.

    Attributes:
      low, high: bounds of the share; `high` 0 turns masking off.
    """

    low: float = -0.7
    high: float = 0.0

    def __post_init__(self) -> None:
        if not (self.low <= self.high and 0.0 <= self.high <= 1.0 and self.low >= -100.0):
            raise ValueError(
                f"config.masking has low {self.low} and high {self.high}; the bounds of the share of hidden tokens "
                f"must satisfy low <= high and 0 <= high <= 1"
            )


def input_times(
    coin: Float[Array, "*b"], level: Float[Array, "*b"], settings: InputNoise
) -> Float[Array, "*b"]:
    """Times of images in questions.

    Args:
      coin: uniform in [0, 1).
      level: uniform in [0, settings.level].
      settings: has the probability.
    """
    return jnp.where(coin < settings.probability, 1.0 - level, 1.0)


def hidden_counts(share: Float[Array, "*b"], tokens: int) -> Array:
    """`trunc(tokens * share)`, and 0 for negative shares."""
    return jnp.maximum(jnp.trunc(tokens * share), 0).astype(jnp.int32)


def hidden_tokens(
    share: Float[Array, "b n"], order: Float[Array, "b n tokens"]
) -> Bool[Array, "b n tokens"]:
    """True at `hidden_counts` tokens of every image, those with the smallest values of `order`."""
    rank = jnp.argsort(jnp.argsort(order, axis=-1), axis=-1)
    return rank < hidden_counts(share, order.shape[-1])[..., None]


def draw(
    noise: InputNoise, masking: Masking, batch: Mapping[str, Array], key: jax.Array
) -> dict[str, Array]:
    """The keys that `models.tuna.loss` takes besides those of a batch: `input_t` and `hidden_tokens`.

    Args:
      noise, masking: what to draw; what is turned off gets no key.
      batch: with `is_target` and `latents`.
      key: PRNG key.
    """
    drawn: dict[str, Array] = {}
    slots = batch["is_target"].shape
    coin_key, level_key, share_key, order_key = jax.random.split(key, 4)
    if noise.probability > 0:
        level = jax.random.uniform(level_key, slots, maxval=noise.level)
        times = input_times(jax.random.uniform(coin_key, slots), level, noise)
        # The source of an edit stays clean.
        generates = batch["is_target"].any(1, keepdims=True)
        drawn["input_t"] = jnp.where(generates, 1.0, times)
    if masking.high > 0:
        share = jax.random.uniform(share_key, slots, minval=masking.low, maxval=masking.high)
        _, _, frames, height, width, _ = batch["latents"].shape
        order = jax.random.uniform(order_key, (*slots, frames * height * width))
        drawn["hidden_tokens"] = hidden_tokens(share, order)
    return drawn
