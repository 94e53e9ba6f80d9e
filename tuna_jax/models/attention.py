"""Omni attention: the positions of tokens, the mask, and the attention itself (model.md section 6).

Query i sees key k iff `k <= i` or both are in the same span. As one interval of keys per query, which fast kernels
need: `k < visible_end[i]`, where `visible_end[i]` is `i + 1` for text and the end of the span inside a span:

            t t [ T v v ] t            t text    T time token    v image token
        t   x . . . . . .
        t   x x . . . . .
      [ T   x x x x x . .              inside a span all tokens see each other
        v   x x x x x . .              and everything before the span
      ] v   x x x x x . .
        t   x x x x x x .

Padding is at the end and is treated as causal text, so no real token sees it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from tuna_jax.config import ATTENTION_BACKENDS
from tuna_jax.models import ring
from tuna_jax.models.cpu_fast_paths import Unstacked
from tuna_jax.models.layers import ATTENTION
from tuna_jax.models.logical_sharding import constrain, platform, ring_axes

# Queries on a device for which 'auto' takes a kernel.
_KERNEL_TOKENS = 256

KVCache = dict[str, Array]  # {'key', 'value'}: [B, kv heads, capacity, head_dim], of one layer
KVCaches = dict[str, Array | Unstacked]  # of all layers: [layers, B, ...]


class Layout(NamedTuple):
    """The positions of a call's tokens in their sequences.

    Attributes:
      position: absolute index in the sequence.
      slot: visual slot of a token, -1 for text.
      within: index in its span, 0 for the time token; 0 for text.
      visible_end: a query sees the keys at positions below this.
    """

    position: Int[Array, "b s"]
    slot: Int[Array, "b s"]
    within: Int[Array, "b s"]
    visible_end: Int[Array, "b s"]

    @property
    def is_image(self) -> Bool[Array, "b s"]:
        """True at image tokens; False at text and at time tokens."""
        return (self.slot >= 0) & (self.within > 0)

    def one_hot(self, slots: int) -> Float[Array, "b s n"]:
        """1 where a token belongs to the slot; all 0 for text."""
        return jax.nn.one_hot(self.slot, slots, dtype=jnp.float32)


def sequence_layout(spans: Int[Array, "b n 2"], length: int) -> Layout:
    """The layout of whole sequences of `length` tokens; a span (-1, -1) is unused."""
    if spans.shape[1] == 0:
        return text_layout(jnp.zeros(len(spans), jnp.int32), length)
    index = jnp.arange(length)
    offset, size = spans[:, :, :1], spans[:, :, 1:]
    used = (offset >= 0) & (size > 0)
    inside = used & (index >= offset) & (index < offset + size)  # [b, n, s]
    any_inside = inside.any(1)
    slot = jnp.where(any_inside, jnp.argmax(inside, 1), -1)
    within = jnp.sum(jnp.where(inside, index - offset, 0), 1)
    end = jnp.sum(jnp.where(inside, offset + size, 0), 1)
    position = jnp.broadcast_to(index, (spans.shape[0], length))
    return Layout(position, slot, within, jnp.where(any_inside, end, position + 1))


def text_layout(start: Int[Array, " b"], length: int) -> Layout:
    """`length` text tokens from absolute position `start` on."""
    position = start[:, None] + jnp.arange(length)
    zeros = jnp.zeros_like(position)
    return Layout(position, zeros - 1, zeros, position + 1)


def span_layout(start: Int[Array, " b"], length: int, slot: int = 0) -> Layout:
    """One whole span of `length` tokens whose time token is at absolute position `start`."""
    within = jnp.broadcast_to(jnp.arange(length), (start.shape[0], length))
    end = jnp.broadcast_to(start[:, None] + length, within.shape)
    return Layout(start[:, None] + within, jnp.full_like(within, slot), within, end)


def attention(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k g d"],
    value: Float[Array, "b k g d"],
    visible_end: Int[Array, "b q"] | None = None,
    visible_start: Int[Array, "b q"] | None = None,
    backend: str = "xla",
) -> Float[Array, "b q h d"]:
    """Grouped-query attention in which each query sees one interval of keys.

    A masked sequence over itself that is split over devices is attended by ring attention (`models/ring.py`), if the
    sharding says so; 'splash' then computes with its kernel, every other backend with dense products of blocks.

    Args:
      query, key, value: with separate heads; `h` is a multiple of `g`.
      visible_end: keys at or after it are hidden; None shows all keys.
      visible_start: keys before it are hidden (packing); None hides none.
      backend: 'xla': a dense mask. 'splash': a kernel for TPUs without a dense mask, interpreted (slowly) on other
        platforms. 'cudnn': a kernel for NVIDIA GPUs in bfloat16, with the dense mask as a bias. 'auto': 'splash' on
        TPUs and 'cudnn' on NVIDIA GPUs where they are supported, else 'xla'. Attention over all keys (the
        representation encoder, 72 channels per head) is dense with 'cudnn', and cached decoding is dense except with
        'cudnn'.

    Returns:
      Outputs per head in the dtype of query; scores and softmax are float32.

    Raises:
      ValueError: the backend is unknown, or does not support this call.
    """
    if backend not in ATTENTION_BACKENDS:
        raise ValueError(
            f"unknown attention backend {backend!r}; choose one of {', '.join(ATTENTION_BACKENDS)}"
        )
    axes = ring_axes()
    if axes and visible_end is not None and query.shape[1] == key.shape[1]:
        return _ring(query, key, value, visible_end, visible_start, backend, axes)
    if backend == "auto":
        backend = _fastest(query, key, masked=visible_end is not None)
    if backend == "splash":
        # It imports Pallas, which takes time that the other backends need not spend.
        from tuna_jax.models import splash

        if query.shape[1] != key.shape[1]:
            raise ValueError(
                f"attention_backend 'splash' requires as many queries as keys, not {query.shape[1]} queries and "
                f"{key.shape[1]} keys; choose 'xla'"
            )
        return splash.attention(query, key, value, visible_end, visible_start)
    if backend == "cudnn" and visible_end is None:
        backend = "xla"
    if backend == "cudnn":
        if platform() not in ("gpu", "cuda"):
            raise ValueError(
                f"attention_backend 'cudnn' requires an NVIDIA GPU, and this is {platform()}; choose 'auto' or 'xla'"
            )
        if query.dtype == jnp.float32:
            raise ValueError(
                "attention_backend 'cudnn' requires compute_dtype 'bfloat16'; choose 'auto' or 'xla' for float32"
            )
        return checkpoint_name(_cudnn(query, key, value, visible_end, visible_start), ATTENTION)
    return _dense(query, key, value, _visible(key.shape[1], visible_end, visible_start))


def _ring(
    query: Float[Array, "b s h d"],
    key: Float[Array, "b s g d"],
    value: Float[Array, "b s g d"],
    visible_end: Int[Array, "b s"],
    visible_start: Int[Array, "b s"] | None,
    backend: str,
    axes: Mapping[str, int],
) -> Float[Array, "b s h d"]:
    """Ring attention over these mesh axes, with the kernel that belongs to the backend."""
    kernel = ring.DENSE
    long = query.shape[1] >= _KERNEL_TOKENS * math.prod(axes.values())
    if backend == "splash" or (backend == "auto" and platform() == "tpu" and long):
        from tuna_jax.models import splash

        kernel = splash.kernel(interpret=platform() != "tpu")
    return ring.attention(query, key, value, visible_end, visible_start, kernel, axes)


def _dense(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k g d"],
    value: Float[Array, "b k g d"],
    visible: Bool[Array, "b q k"] | None,
) -> Float[Array, "b q h d"]:
    """`softmax(q k^T / sqrt(d)) v` with all scores in memory; `visible` is the mask, None shows everything."""
    batch, queries, heads, head_dim = query.shape
    groups = key.shape[2]
    query = query.reshape(batch, queries, groups, heads // groups, head_dim)
    scores = jnp.einsum("bqgrd,bkgd->bgqrk", query, key, preferred_element_type=jnp.float32)
    scores = scores * head_dim**-0.5
    if visible is not None:
        # A finite floor: the weights of a query that sees nothing become uniform, never NaN.
        floor = jnp.finfo(jnp.float32).min
        scores = jnp.where(visible[:, None, :, None], scores, floor)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    seen = jnp.einsum("bgqrk,bkgd->bqgrd", weights, value)
    return checkpoint_name(seen.reshape(batch, queries, heads, head_dim), ATTENTION)


def _fastest(query: Array, key: Array, *, masked: bool) -> str:
    """The fastest backend for this call on the platform that it is traced for."""
    queries, keys = query.shape[1], key.shape[1]
    if queries < _KERNEL_TOKENS:
        return "xla"
    if platform() == "tpu":
        return "splash" if queries == keys else "xla"
    halves = query.dtype in (jnp.bfloat16, jnp.float16)
    return "cudnn" if platform() in ("gpu", "cuda") and halves and masked else "xla"


def _cudnn(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k g d"],
    value: Float[Array, "b k g d"],
    visible_end: Int[Array, "b q"] | None,
    visible_start: Int[Array, "b q"] | None,
) -> Float[Array, "b q h d"]:
    """cuDNN's kernel; with a mask it needs even lengths for gradients and reads multiples of 8 faster, hence the
    padding."""
    queries, keys = query.shape[1], key.shape[1]
    visible = _visible(keys, visible_end, visible_start)
    padding = (-queries % 8, -keys % 8)
    if any(padding):
        if visible is None:
            visible = jnp.ones((query.shape[0], queries, keys), bool)
        # A padded query sees every real key, and its output is dropped.
        visible = jnp.pad(visible, ((0, 0), (0, padding[0]), (0, 0)), constant_values=True)
        visible = jnp.pad(visible, ((0, 0), (0, 0), (0, padding[1])))
        query, key, value = (
            jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0)))
            for x, extra in ((query, padding[0]), (key, padding[1]), (value, padding[1]))
        )
    mask = None if visible is None else visible[:, None]
    seen = jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="cudnn")
    return seen[:, :queries]


def _visible(
    keys: int, visible_end: Int[Array, "b q"] | None, visible_start: Int[Array, "b q"] | None
) -> Bool[Array, "b q k"] | None:
    """The dense mask; None shows everything."""
    index = jnp.arange(keys)
    visible = None
    if visible_end is not None:
        visible = index < visible_end[:, :, None]
    if visible_start is not None:
        after = index >= visible_start[:, :, None]
        visible = after if visible is None else visible & after
    return visible


def attend(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b q g d"],
    value: Float[Array, "b q g d"],
    layout: Layout,
    cache: KVCache | None,
    backend: str,
) -> tuple[Float[Array, "b q h d"], KVCache | None]:
    """Omni attention of a call's tokens over themselves and, with a cache, over the cached ones.

    With a cache, the new keys and values are written at the rows' first positions and the new cache is returned; the
    attention is then dense, except with cuDNN.
    """
    query = constrain(query, "batch", "sequence", "heads", None)
    if cache is not None:
        start = layout.position[:, 0]
        cache = {
            "key": _write(cache["key"], key, start),
            "value": _write(cache["value"], value, start),
        }
        cache = {name: constrain(x, *_CACHE_AXES) for name, x in cache.items()}
        # The cache has heads first, as the products need them, so that only new tokens are transposed.
        key, value = (cache[name].swapaxes(1, 2).astype(key.dtype) for name in ("key", "value"))
        if platform() not in ("gpu", "cuda"):
            backend = "xla"
    keys = "sequence" if cache is None and ring_axes() else "keys"
    key = constrain(key, "batch", keys, "kv_heads", None)
    value = constrain(value, "batch", keys, "kv_heads", None)
    seen = attention(query, key, value, layout.visible_end, backend=backend)
    return constrain(seen, "batch", "sequence", "heads", None), cache


_CACHE_AXES = ("batch", "kv_heads", "keys", None)


def _write(
    cache: Float[Array, "b g k d"], new: Float[Array, "b q g d"], start: Int[Array, " b"]
) -> Float[Array, "b g k d"]:
    def write_row(row: Array, update: Array, at: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(row, update.astype(row.dtype), at, axis=1)

    return jax.vmap(write_row)(cache, new.swapaxes(1, 2), start)


def empty_cache(
    layers: int, batch: int, capacity: int, kv_heads: int, head_dim: int, dtype: Any
) -> KVCaches:
    """A stacked cache of zeros, `[layers, batch, kv_heads, capacity, head_dim]` each."""
    shape = (layers, batch, kv_heads, capacity, head_dim)
    return {
        name: constrain(jnp.zeros(shape, dtype), None, *_CACHE_AXES) for name in ("key", "value")
    }
