"""The prefix cache: what does not attend to the noisy span or the next token is computed once (model.md section 9).

Rows of a batch may have prefixes of different lengths. A prefix is padded at its end, and what follows is written over
the padding at each row's own length; no query attends to the padding that remains.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tuna_jax.config import TunaConfig
from tuna_jax.models import flow_head, language, tuna
from tuna_jax.models.attention import KVCaches, sequence_layout, span_layout, text_layout
from tuna_jax.models.cpu_fast_paths import unstack, unstack_layers, unstacks
from tuna_jax.models.layers import Params
from tuna_jax.models.logical_sharding import constrain


class Prefix(NamedTuple):
    """What generation starts from.

    Attributes:
      tokens: token ids, padded at the end.
      lengths: number of tokens of each row without padding.
      spans: `(offset, length)` of the clean visual slots; `(-1, -1)` is an unused slot; N may be 0.
      latents: clean latents of the slots; None when N is 0.
      images: patches of clean pixels of the slots, for designs that see pixels (`TunaConfig.sees_pixels`).
    """

    tokens: Int[Array, "b p"]
    lengths: Int[Array, " b"]
    spans: Int[Array, "b n 2"]
    latents: Float[Array, "b n t h w c"] | None = None
    images: Float[Array, "b n t h w p"] | None = None


class Cache(NamedTuple):
    """Keys and values of a prefix in the language transformer and, if requested, in the flow head."""

    language: KVCaches
    flow_head: KVCaches | None


def text_prefix(tokens: Int[np.ndarray, "b p"], lengths: Int[np.ndarray, " b"]) -> Prefix:
    """A prefix without images."""
    spans = jnp.zeros((len(tokens), 0, 2), jnp.int32)
    return Prefix(jnp.asarray(tokens), jnp.asarray(lengths), spans)


def prepared(config: TunaConfig, params: Params) -> Params:
    """Parameters as the loops over solver steps and tokens take them: on CPU with `unroll`, unstacked layers.

    The loops unstack layers themselves. Code that calls them many times can do it once before and save each call a copy
    of the layers, at the cost of the memory of a second copy.
    """
    return jax.jit(unstack_layers)(params) if unstacks(config) else params


def prefill(
    config: TunaConfig, params: Params, prefix: Prefix, capacity: int, *, with_flow_head: bool
) -> tuple[Cache, Float[Array, "b p d"]]:
    """Runs a prefix once.

    Args:
      config, params: the model.
      prefix: the prefix, whose visual slots are clean (t = 1).
      capacity: positions of the cache: at least the prefix's padded length plus the number that will be written.
      with_flow_head: whether the flow head's keys and values are needed (for images) or not (for text).

    Returns:
      The cache, and the hidden states of the prefix.
    """
    batch, length = prefix.tokens.shape
    model = tuna.bind(config, params)
    layout = sequence_layout(prefix.spans, length)
    # Modulation requires a slot even if no token belongs to one.
    slots = max(1, prefix.spans.shape[1])
    time = model.time_embedding(jnp.ones((batch, slots)))
    x = model.embed(prefix.tokens, layout, prefix.latents, time, None, prefix.images)
    hidden, language_cache = model.language(x, layout, language.new_cache(config, batch, capacity))
    assert language_cache is not None
    if not with_flow_head:
        return Cache(language_cache, None), hidden
    latents = prefix.latents
    grid = (1, 1) if latents is None else (latents.shape[3], latents.shape[4])
    head_cache = flow_head.new_cache(config, batch, capacity)
    _, head_cache = model.flow_head(hidden, time, layout, grid, head_cache)
    return Cache(language_cache, head_cache), hidden


def span_prediction(
    config: TunaConfig,
    params: Params,
    cache: Cache,
    start: Int[Array, " b"],
    x: Float[Array, "l t h w c"],
    t: Float[Array, "*l"],
) -> Float[Array, "b t h w c"]:
    """What the flow head predicts for the noisy span on a cached prefix: a velocity, or a clean image
    (`config.flow`). The cache does not change.

    Args:
      config, params: the model.
      cache: cache of the prefix, with room for the span behind it.
      start: position at which each row's span begins, which is the length of its prefix.
      x: noisy latents, one per row; or half as many if both branches of guidance share them: rows i and i + L then have
        latents i, which the representation encoder runs on once.
      t: flow time of the latents: one of all rows, which is then embedded once, or one per row of `x`.
    """
    model = tuna.bind(config, params)
    visual = model.visual_tokens(x[:, None], generates=True)[:, 0]
    branches = len(start) // len(x)
    visual = jnp.concatenate([visual] * branches)
    time = model.time_embedding(t.reshape(-1, 1))
    if t.ndim:
        time = jnp.concatenate([time] * branches)
    first = jnp.broadcast_to(time.astype(visual.dtype), (len(start), *time.shape[1:]))
    tokens = jnp.concatenate([first, visual], axis=1)
    tokens = constrain(tokens, "batch", "sequence", "width")
    layout = span_layout(start, tokens.shape[1])
    hidden, _ = model.language(tokens, layout, cache.language)
    grid = (x.shape[2], x.shape[3])
    prediction, _ = model.flow_head(hidden, time, layout, grid, cache.flow_head)
    return tuna.in_place(config, prediction[:, 1:].reshape(len(start), *x.shape[1:]))


def next_logits(
    config: TunaConfig,
    params: Params,
    cache: Cache,
    position: Int[Array, " b"],
    token: Int[Array, " b"],
) -> tuple[Float[Array, "b v"], Cache]:
    """Logits after one more token per row, written at `position`, and the cache that includes it."""
    model = tuna.bind(config, params)
    x = model.language.embed(token[:, None], jnp.dtype(config.compute_dtype))
    hidden, language_cache = model.language(x, text_layout(position, 1), cache.language)
    assert language_cache is not None
    return model.language.logits(hidden)[:, 0], Cache(language_cache, cache.flow_head)


def cleared_cache(config: TunaConfig, rows: int, capacity: int, *, with_flow_head: bool) -> Cache:
    """An empty cache of many prefixes, as `with_rows` fills it; its layers are unstacked where loops take them so."""
    cache = Cache(
        language.new_cache(config, rows, capacity),
        flow_head.new_cache(config, rows, capacity) if with_flow_head else None,
    )
    return unstack(cache) if unstacks(config) else cache


def row_axis(config: TunaConfig) -> int:
    """The axis of rows in the arrays of a cache that `cleared_cache` made."""
    return 0 if unstacks(config) else 1


def with_rows(config: TunaConfig, cache: Cache, new: Cache, rows: Int[Array, " b"]) -> Cache:
    """The cache with these rows replaced by those of a prefilled one, whose capacity may be smaller: zeros follow."""
    new = unstack(new) if unstacks(config) else new
    axis = row_axis(config)

    def put(old: Array, given: Array) -> Array:
        padding = [(0, 0)] * given.ndim
        padding[-2] = (0, old.shape[-2] - given.shape[-2])
        given = jnp.pad(given, padding)
        return old.at[rows].set(given) if axis == 0 else old.at[:, rows].set(given)

    return jax.tree.map(put, cache, new)


def take_rows(config: TunaConfig, cache: Cache, rows: Int[Array, " r"], keys: int) -> Cache:
    """The first `keys` positions of these rows."""
    axis = row_axis(config)
    return jax.tree.map(lambda leaf: jnp.take(leaf[..., :keys, :], rows, axis=axis), cache)


def first_rows(config: TunaConfig, cache: Cache, count: int, keys: int) -> Cache:
    """The first `keys` positions of the first rows."""
    axis = row_axis(config)
    return jax.tree.map(
        lambda leaf: jax.lax.slice_in_dim(leaf[..., :keys, :], 0, count, axis=axis), cache
    )


def with_first_rows(cache: Cache, new: Cache) -> Cache:
    """The cache with its first rows, up to the capacity of `new`, replaced."""
    return jax.tree.map(
        lambda old, given: jax.lax.dynamic_update_slice(old, given, [0] * old.ndim), cache, new
    )


def join(first: Prefix, second: Prefix) -> Prefix:
    """The rows of two prefixes (both branches of guidance) in one batch, padded to the longer one."""
    length = max(first.tokens.shape[1], second.tokens.shape[1])

    def pad(tokens: Array) -> Array:
        return jnp.pad(tokens, ((0, 0), (0, length - tokens.shape[1])))

    latents, images = (
        None if one is None or other is None else jnp.concatenate([one, other])
        for one, other in ((first.latents, second.latents), (first.images, second.images))
    )
    return Prefix(
        jnp.concatenate([pad(first.tokens), pad(second.tokens)]),
        jnp.concatenate([first.lengths, second.lengths]),
        jnp.concatenate([first.spans, second.spans]),
        latents,
        images,
    )


def last_hidden(hidden: Float[Array, "b p d"], lengths: Int[Array, " b"]) -> Float[Array, "b 1 d"]:
    """Hidden state of the last token of every row, without padding."""
    return jax.vmap(lambda row, n: jax.lax.dynamic_slice_in_dim(row, n - 1, 1))(hidden, lengths)
