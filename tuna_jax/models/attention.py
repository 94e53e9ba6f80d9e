"""Omni attention: where tokens stand, what each may see, and the attention itself (model.md section 6).

Query i sees key k iff `k <= i`, or both lie in the same span. Said as one interval of keys a
query, which is how fast kernels
want it: `k < visible_end[i]`, where `visible_end[i]` is `i + 1` for text and the span's end inside a span:

            t t [ T v v ] t            t text    T time token    v image token
        t   x . . . . . .
        t   x x . . . . .
      [ T   x x x x x . .              inside the span everybody sees everybody,
        v   x x x x x . .              and all that came before
      ] v   x x x x x . .
        t   x x x x x x .

Padding stands at the end and is ordinary causal text there, so no real token sees it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from tuna_jax.models.layers import ATTENTION, Apart
from tuna_jax.models.logical_sharding import constrain, platform

KVCache = dict[str, Array]  # {'key', 'value'}: [B, kv heads, capacity, head_dim], of one layer
KVCaches = dict[str, Array | Apart]  # of all layers: [layers, B, ...], or a layer's array each


class Layout(NamedTuple):
    """Where the tokens of a call stand in their sequences.

    Attributes:
      position: absolute index in the sequence.
      slot: visual slot that a token belongs to, -1 for text.
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
        """1 where a token belongs to the slot; text rows are all 0."""
        return jax.nn.one_hot(self.slot, slots, dtype=jnp.float32)


def sequence_layout(spans: Int[Array, "b n 2"], length: int) -> Layout:
    """The layout of whole sequences of `length` tokens; a span (-1, -1) touches nothing."""
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
    """`length` text tokens that begin at absolute position `start`."""
    position = start[:, None] + jnp.arange(length)
    zeros = jnp.zeros_like(position)
    return Layout(position, zeros - 1, zeros, position + 1)


def span_layout(start: Int[Array, " b"], length: int, slot: int = 0) -> Layout:
    """One whole span of `length` tokens whose time token stands at absolute position `start`."""
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
    """Grouped-query attention under one interval of keys a query.

    Args:
      query, key, value: heads split; `h` is a multiple of `g`.
      visible_end: keys at or after it are hidden; None shows all keys.
      visible_start: keys before it are hidden (packing); None hides none.
      backend: 'xla': a dense mask. 'splash': a kernel for TPUs that never builds one; interpreted, slowly, elsewhere.
        'cudnn': a kernel for NVIDIA's GPUs in bfloat16, with the dense mask as a bias. 'auto': 'splash' on TPUs and
        'cudnn' on NVIDIA's GPUs where they can be had, else 'xla'. Dense whatever the setting: what shows all keys
        (the representation encoder, 72 channels a head) but for 'splash', and cached decoding but for 'cudnn'.

    Returns:
      Per-head outputs in the dtype of query; scores and softmax are float32.

    Raises:
      ValueError: an unknown backend, or one that cannot do what is asked.
    """
    if backend == "auto":
        backend = _fastest(query, key, masked=visible_end is not None)
    if backend == "splash":
        # Imports Pallas, which others need not wait for.
        from tuna_jax.models import splash

        if query.shape[1] != key.shape[1]:
            raise ValueError(
                f"attention_backend 'splash' is for a sequence over itself, not for {query.shape[1]} queries over "
                f"{key.shape[1]} keys; choose 'xla'"
            )
        return splash.attention(query, key, value, visible_end, visible_start)
    if backend == "cudnn" and visible_end is None:
        backend = "xla"
    if backend == "cudnn":
        if platform() not in ("gpu", "cuda"):
            raise ValueError(
                f"attention_backend 'cudnn' runs on NVIDIA's GPUs, and this is {platform()}; choose 'auto' or 'xla'"
            )
        if query.dtype == jnp.float32:
            raise ValueError(
                "attention_backend 'cudnn' wants compute_dtype 'bfloat16'; choose 'auto' or 'xla' for float32"
            )
        return checkpoint_name(_cudnn(query, key, value, visible_end, visible_start), ATTENTION)
    if backend != "xla":
        raise ValueError(
            f"unknown attention backend {backend!r}; choose 'xla', 'auto', 'splash' or 'cudnn'"
        )
    batch, queries, heads, head_dim = query.shape
    keys, groups = key.shape[1], key.shape[2]
    grouped = query.reshape(batch, queries, groups, heads // groups, head_dim)
    grouped = grouped.transpose(0, 2, 1, 3, 4)
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    visible = _visible(keys, visible_end, visible_start)
    seen = _dense(grouped, key, value, visible)
    return seen.transpose(0, 2, 1, 3, 4).reshape(query.shape)


@jax.custom_vjp
def _dense(
    query: Float[Array, "b g q r d"],
    key: Float[Array, "b g k d"],
    value: Float[Array, "b g k d"],
    visible: Bool[Array, "b q k"] | None,
) -> Float[Array, "b g q r d"]:
    """Softmax attention, every score held at once, with gradients written out.

    Scores are far larger than all else here. So nothing transposes them, forward or backward (`einsum` may swap the
    operands of a product, and JAX's own gradients of keys and values are products that XLA on CPU wants transposed
    scores for), and no pass goes over them that may go over outputs instead: the division by the softmax's sum, and
    the sum in the softmax's gradient, which is `sum(gradient * output)` (Dao et al. 2022, FlashAttention).
    """
    return _dense_forward(query, key, value, visible)[0]


_HEADS = ((0, 1), (0, 1))  # Axes that every product here goes along: rows, and groups of heads.


def _dense_forward(
    query: Array, key: Array, value: Array, visible: Array | None
) -> tuple[Array, tuple[Any, ...]]:
    scores = jax.lax.dot_general(
        query, key, (((4,), (3,)), _HEADS), preferred_element_type=jnp.float32
    )
    scores = scores * query.shape[-1] ** -0.5  # [b, g, q, r, k]
    if visible is not None:
        # A finite floor: a row that sees nothing becomes uniform, never NaN.
        floor = jnp.finfo(jnp.float32).min
        scores = jnp.where(visible[:, None, :, None], scores, floor)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)
    weights = weights.astype(value.dtype)
    seen = jax.lax.dot_general(
        weights, value, (((4,), (2,)), _HEADS), preferred_element_type=jnp.float32
    )
    # Named here, where the gradient takes it from: a policy that keeps it spares the second product.
    seen = checkpoint_name((seen / total).astype(value.dtype), ATTENTION)
    return seen, (query, key, value, visible, weights, total, seen)


def _dense_backward(saved: tuple[Any, ...], gradient: Array) -> tuple[Any, ...]:
    query, key, value, visible, weights, total, seen = saved
    scale = query.shape[-1] ** -0.5

    def for_keys(rows: Array, scores: Array) -> Array:
        product = jax.lax.dot_general(rows, scores, (((2, 3), (2, 3)), _HEADS))
        return product.transpose(0, 1, 3, 2)  # [b, g, k, d]

    to_weights = jax.lax.dot_general(
        gradient, value, (((4,), (3,)), _HEADS), preferred_element_type=jnp.float32
    )
    share = jnp.sum(gradient.astype(jnp.float32) * seen.astype(jnp.float32), -1, keepdims=True)
    to_scores = weights.astype(jnp.float32) * ((to_weights - share) * (scale / total))
    if visible is not None:
        to_scores = jnp.where(visible[:, None, :, None], to_scores, 0.0)
    to_scores = to_scores.astype(query.dtype)
    to_query = jax.lax.dot_general(to_scores, key, (((4,), (2,)), _HEADS))
    own = (gradient.astype(jnp.float32) / total).astype(value.dtype)
    return to_query, for_keys(query, to_scores), for_keys(own, weights), None


_dense.defvjp(_dense_forward, _dense_backward)


def _fastest(query: Array, key: Array, *, masked: bool) -> str:
    """The backend for this call where it is traced for."""
    queries, keys = query.shape[1], key.shape[1]
    if queries < 256:
        return "xla"
    if platform() == "tpu":
        return "splash" if queries == keys < 65_536 else "xla"
    halves = query.dtype in (jnp.bfloat16, jnp.float16)
    return "cudnn" if platform() in ("gpu", "cuda") and halves and masked else "xla"


def _cudnn(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k g d"],
    value: Float[Array, "b k g d"],
    visible_end: Int[Array, "b q"] | None,
    visible_start: Int[Array, "b q"] | None,
) -> Float[Array, "b q h d"]:
    """cuDNN's kernel, which with a mask wants even lengths to differentiate and multiples of 8 to read whole words."""
    queries, keys = query.shape[1], key.shape[1]
    visible = _visible(keys, visible_end, visible_start)
    more = (-queries % 8, -keys % 8)
    if any(more):
        if visible is None:
            visible = jnp.ones((query.shape[0], queries, keys), bool)
        # A query that is too many sees every real key, and what it sees is thrown away.
        visible = jnp.pad(visible, ((0, 0), (0, more[0]), (0, 0)), constant_values=True)
        visible = jnp.pad(visible, ((0, 0), (0, 0), (0, more[1])))
        query, key, value = (
            jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0)))
            for x, extra in ((query, more[0]), (key, more[1]), (value, more[1]))
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
    """Omni attention of a call's tokens over themselves, or, with a cache, over all that was written before too.

    With a cache the new keys and values are written at the rows' first positions, and the cache with them is returned;
    the attention is then dense, unless cuDNN does it.
    """
    query = constrain(query, "batch", "sequence", "heads", None)
    if cache is not None:
        start = layout.position[:, 0]
        cache = {
            "key": _write(cache["key"], key, start),
            "value": _write(cache["value"], value, start),
        }
        cache = {name: constrain(x, *_CACHE_AXES) for name, x in cache.items()}
        # Heads first, as the products want them: so nothing but what is new is transposed, token after token.
        key, value = (cache[name].swapaxes(1, 2).astype(key.dtype) for name in ("key", "value"))
        if platform() not in ("gpu", "cuda"):
            backend = "xla"
    key = constrain(key, "batch", "keys", "kv_heads", None)
    value = constrain(value, "batch", "keys", "kv_heads", None)
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
