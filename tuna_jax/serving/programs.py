"""The programs of the server that go beyond those of `inference/generation`: with the VAE, for slots of a batch."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tuna_jax.config import TunaConfig
from tuna_jax.inference import batching
from tuna_jax.inference.generation import flow_slots, text_slots
from tuna_jax.inference.generation.flow_slots import FlowSlots
from tuna_jax.inference.generation.prefix_cache import Prefix
from tuna_jax.inference.generation.text_slots import RowOptions, TextSlots
from tuna_jax.models.logical_sharding import LogicalSharding

_STATIC = ("config", "sharding", "tile_above")


def _with_media(
    config: TunaConfig,
    vae_params: Any,
    prompts: tuple[Array, Array, Array],
    clips: Array | None,
    sharding: LogicalSharding | None,
    tile_above: int,
) -> Prefix:
    """Prompts (tokens, lengths, spans) with the latents of their clips, uint8 [b, n, frames, height, width, 3]."""
    if clips is None:
        return Prefix(*prompts)
    flat = clips.reshape(-1, *clips.shape[2:])
    mean, _ = batching.encode(config, vae_params, flat, sharding, tile_above)
    latents = mean.reshape(*clips.shape[:2], *mean.shape[1:])
    patches = batching.clean_patches(config, flat)
    if patches is not None:
        patches = patches.reshape(*clips.shape[:2], *patches.shape[1:])
    return Prefix(*prompts, latents, patches)


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames="slots")
def insert_text(
    config: TunaConfig,
    params: Any,
    vae_params: Any,
    slots: TextSlots,
    prompts: tuple[Array, Array, Array],
    clips: Array | None,
    rows: Array,
    options: RowOptions,
    sharding: LogicalSharding | None,
    tile_above: int,
) -> TextSlots:
    """`text_slots.insert` of prompts with clips."""
    prefix = _with_media(config, vae_params, prompts, clips, sharding, tile_above)
    return text_slots.insert(config, params, slots, prefix, rows, options, sharding)


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames="slots")
def insert_pictures(
    config: TunaConfig,
    params: Any,
    vae_params: Any,
    slots: FlowSlots,
    positive: tuple[Array, Array, Array],
    negative: tuple[Array, Array, Array],
    sources: Array | None,
    keys: Array,
    rows: Array,
    sharding: LogicalSharding | None,
    tile_above: int,
) -> FlowSlots:
    """`flow_slots.insert` of prompts with the images to edit, which both branches see."""
    first = _with_media(config, vae_params, positive, sources, sharding, tile_above)
    second = Prefix(*negative, first.latents, first.images)
    return flow_slots.insert(config, params, slots, first, second, keys, rows, sharding)


@functools.partial(jax.jit, static_argnames=_STATIC)
def decode(
    config: TunaConfig,
    vae_params: Any,
    latents: Array,
    rows: Array,
    sharding: LogicalSharding | None,
    tile_above: int,
) -> tuple[Array, Array]:
    """The clips of some slots, uint8 [r, frames, height, width, 3], and whether each is finite."""
    return batching.decode_on_device(
        config, vae_params, jnp.take(latents, rows, axis=0), sharding, tile_above
    )
