"""Measures the VAE's encoding and decoding: whole clips, and chunks of time as in the released code."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax.config import preset
from tuna_jax.models import vae
from tuna_jax.perf import harness


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the measurement.

    Attributes:
      preset: whose VAE is measured, with random weights.
      dtype: of its activations.
      batch: clips at once.
      size: of a frame, in pixels.
      frames: 1 + 4k; 1 is an image.
      rounds: of each variant.
    """

    preset: str = "emoji"
    dtype: str = "float32"
    batch: int = 4
    size: int = 64
    frames: int = 17
    rounds: int = 5

    def __post_init__(self) -> None:
        harness.at_least(self, batch=1, rounds=1)
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype is {self.dtype!r}; choose float32 or bfloat16")
        preset(self.preset).video_vae.latent_shape(self.frames, self.size, self.size)


def measure(settings: Settings, folder: Path) -> list[harness.Group]:
    """Encoding and decoding, each whole and, for clips, also in chunks."""
    del folder
    config, dtype = preset(settings.preset).video_vae, jnp.dtype(settings.dtype)
    params = jax.jit(functools.partial(vae.init, config))(jax.random.key(0))
    random = np.random.default_rng(0)
    shape = (settings.batch, settings.frames, settings.size, settings.size, 3)
    pixels = jnp.asarray(random.uniform(-1, 1, shape), dtype)
    latent = config.latent_shape(settings.frames, settings.size, settings.size)
    latents = jnp.asarray(random.standard_normal((settings.batch, *latent)), dtype)

    def encode(chunked: bool) -> Any:
        return lambda params, x: vae.encode_moments(config, params, x, chunked=chunked)[0]

    def decode(chunked: bool) -> Any:
        return lambda params, x: vae.decode(config, params, x, chunked=chunked)

    groups = []
    for verb, make, inputs in (("encoding", encode, pixels), ("decoding", decode, latents)):
        ways = {"whole": False, "in chunks of time": True} if settings.frames > 1 else {"": False}
        work = settings.batch * settings.frames
        variants = [
            harness.compiled(f"tuna_jax {way}".strip(), make(chunked), params, inputs, work=work)
            for way, chunked in ways.items()
        ]
        name = f"{verb} {settings.batch} of {settings.frames}x{settings.size}x{settings.size}; {settings.preset}"
        groups.append(
            harness.measure(f"{name}, {settings.dtype}", "frame", variants, settings.rounds)
        )
    return groups


table, record = harness.table, harness.record
