"""Omni attention of sequences that are split over devices: keys and values travel from device to device (ring
attention, arXiv 2310.01889), so that no device ever holds those of a whole sequence, nor all scores.

Every device keeps its queries and visits one block of keys after the other:

    device    visit 0    visit 1    visit 2    visit 3
       0      block 0    block 3    block 2    block 1
       1      block 1    block 0    block 3    block 2
       2      block 2    block 1    block 0    block 3
       3      block 3    block 2    block 1    block 0

A visit gives outputs `o` and log-sum-exps `l` of the scores over only the keys of this block; `merge` combines two
such pairs into that of both blocks, exactly. In the backward pass, scores are computed again from the final
log-sum-exps, and the gradients of a block's keys and values travel with it until they are home. A block of which no
query of the device sees a key is not computed: under a causal mask that is half of the visits.

What a visit computes is a `Kernel`: `DENSE` below, or JAX's splash kernel (`models/splash.py`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from tuna_jax.models.layers import ATTENTION
from tuna_jax.models.logical_sharding import local, parts

NOTHING = -1e30
"""The log-sum-exp of a query that sees no key: finite, so that no difference of two is NaN."""
# Scores per head that the dense kernel has in memory at a time.
_SCORES = 2**22

Ends = Int[Array, "b q"]


class Kernel(NamedTuple):
    """Attention of queries over one block of keys.

    `start` and `end` are each query's interval of keys, counted from the first key of the block and within it; `start`
    None stands for 0. A query may see no key. Queries are scaled. Gradients are float32.

    Attributes:
      forward: `(query, key, value, start, end)` -> outputs and log-sum-exps, float32.
      backward: `(query, key, value, start, end, gradient, lse, delta)` -> gradients of query, key and value. `gradient`
        is that of the outputs, `lse` the log-sum-exp over all blocks, and `delta` the sum over channels of outputs over
        all blocks times their gradients.
      most_keys: the largest block for a number of queries.
    """

    forward: Callable[..., tuple[Array, Array]]
    backward: Callable[..., tuple[Array, Array, Array]]
    most_keys: Callable[[int], int]


class _Ring(NamedTuple):
    """The mesh axes that the sequence is split over, the number of parts, and the kernel of a visit."""

    axes: tuple[str, ...]
    parts: int
    kernel: Kernel


def attention(
    query: Float[Array, "b s h d"],
    key: Float[Array, "b s g d"],
    value: Float[Array, "b s g d"],
    visible_end: Int[Array, "b s"],
    visible_start: Int[Array, "b s"] | None,
    kernel: Kernel,
    axes: Mapping[str, int],
) -> Float[Array, "b s h d"]:
    """Grouped-query attention of a sequence over itself in which each query sees one interval of keys.

    Args:
      query, key, value: with separate heads; `h` is a multiple of `g`. The sequence may have any length; it is padded
        to a multiple of the number of devices.
      visible_end: keys at or after it are hidden. Every query must see at least one key.
      visible_start: keys before it are hidden (packing); None hides none.
      kernel: what computes a block.
      axes: the mesh axes that the sequence is split over, with their sizes; empty: each device has whole sequences, and
        blocks are only as large as the kernel allows.

    Returns:
      Outputs per head in the dtype of query.
    """
    length, head_dim = query.shape[1], query.shape[3]
    count = math.prod(axes.values())
    query = (query.astype(jnp.float32) * head_dim**-0.5).astype(query.dtype)
    key, value = matched_heads(query, key, value)
    padding = -length % count
    if padding:
        # A padded query sees nothing, and nobody sees a padded key.
        query, key, value = (
            jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (query, key, value)
        )
    ends = [visible_end] if visible_start is None else [visible_end, visible_start]
    ends = [jnp.pad(x.astype(jnp.int32), ((0, 0), (0, padding))) for x in ends]
    ring = _Ring(tuple(axes), count, kernel)

    def on_one_device(query: Array, key: Array, value: Array, end: Array, *start: Array) -> Array:
        return _attention(ring, query, key, value, start[0] if start else None, end)

    queries, keys = (("batch", "sequence", heads, None) for heads in ("heads", "kv_heads"))
    inputs = (queries, keys, keys, *[("batch", "sequence")] * len(ends))
    seen = local(on_one_device, inputs, queries)(query, key, value, *ends)
    return seen[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    ring: _Ring, query: Array, key: Array, value: Array, start: Array | None, end: Array
) -> Array:
    """One device's part; the block of keys that it begins with is that of its own tokens."""
    return _forward(ring, query, key, value, start, end)[0]


def _forward(
    ring: _Ring, query: Array, key: Array, value: Array, start: Array | None, end: Array
) -> tuple[Array, Any]:
    def visit(count: int | Array, key: Array, value: Array, total: Any) -> Any:
        own = _within(ring, count, key.shape[1], start, end)
        return _visit(ring.kernel, query, key, value, *own, total)

    batch, length, heads, _ = query.shape
    total = (
        jnp.zeros(query.shape, jnp.float32),
        jnp.full((batch, heads, length), NOTHING, jnp.float32),
    )
    here = key, value
    if ring.parts > 1:

        def hop(carry: Any, count: Array) -> tuple[Any, None]:
            here, total = carry
            # The next block travels while this one is computed.
            return (_shift(ring, here), visit(count, here[0], here[1], total)), None

        (here, total), _ = jax.lax.scan(hop, (here, total), jnp.arange(ring.parts - 1))
    out, lse = visit(ring.parts - 1, here[0], here[1], total)
    out = checkpoint_name(out.astype(query.dtype), ATTENTION)
    lse = checkpoint_name(lse, ATTENTION)
    return out, (query, key, value, start, end, out, lse)


def _backward(ring: _Ring, residuals: Any, gradient: Array) -> tuple[Any, ...]:
    query, key, value, start, end, out, lse = residuals
    delta = jnp.einsum("bqhd,bqhd->bhq", out.astype(jnp.float32), gradient.astype(jnp.float32))

    def visit(count: int | Array, key: Array, value: Array, dquery: Array) -> Any:
        own = _within(ring, count, key.shape[1], start, end)
        return _visit_back(ring.kernel, query, key, value, *own, gradient, lse, delta, dquery)

    dquery, *block = visit(0, key, value, jnp.zeros(query.shape, jnp.float32))
    if ring.parts > 1:

        def hop(carry: Any, count: Array) -> tuple[Any, None]:
            here, dquery, block = carry
            # Nothing that travels waits for this visit: the gradients so far of the block that is here have just left
            # the device that it was on before.
            ahead, so_far = _shift(ring, here), _shift(ring, block)
            dquery, *more = visit(count, here[0], here[1], dquery)
            return (ahead, dquery, jax.tree.map(jnp.add, so_far, more)), None

        start_of = (_shift(ring, (key, value)), dquery, block)
        (_, dquery, block), _ = jax.lax.scan(hop, start_of, jnp.arange(1, ring.parts))
        block = _shift(ring, block)
    dkey, dvalue = block
    return (
        dquery.astype(query.dtype), dkey.astype(key.dtype), dvalue.astype(value.dtype), None, None
    )  # fmt: skip


_attention.defvjp(_forward, _backward)


def _shift(ring: _Ring, tree: Any) -> Any:
    """Each device's arrays on the next device."""
    pairs = [(i, (i + 1) % ring.parts) for i in range(ring.parts)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, ring.axes, pairs), tree)


def _within(
    ring: _Ring, count: int | Array, length: int, start: Array | None, end: Array
) -> tuple[Array | None, Array]:
    """The queries' intervals within the block of this visit, of `length` keys, counted from its first key."""
    if ring.parts == 1:
        return start, end
    block = (jax.lax.axis_index(ring.axes) - count) % ring.parts
    return _clipped(start, end, block * length, length)


def _clipped(
    start: Array | None, end: Array, first: int | Array, length: int
) -> tuple[Array | None, Array]:
    end = jnp.clip(end - first, 0, length)
    return (None if start is None else jnp.clip(start - first, 0, length)), end


def matched_heads(
    query: Float[Array, "b q h d"], key: Float[Array, "b k g d"], value: Float[Array, "b k g d"]
) -> tuple[Array, Array]:
    """Keys and values for `local`: the heads may be split into more parts than there are heads of keys; each part then
    gets copies of those it needs."""
    copies = parts("heads", query.shape[2])
    copies //= math.gcd(key.shape[2], copies)
    if copies > 1:
        key, value = (jnp.repeat(x, copies, axis=2) for x in (key, value))
    return key, value


def _sees_any(start: Array | None, end: Array) -> Array:
    """True if some query sees a key of the block."""
    return jnp.any(end > (0 if start is None else start))


def merge(
    first: tuple[Array, Array], second: tuple[Array, Array]
) -> tuple[Float[Array, "b q h d"], Float[Array, "b h q"]]:
    """Outputs and log-sum-exps over the keys of two blocks from those over each."""
    (out, lse), (more, of_more) = first, second
    both = jnp.logaddexp(lse, of_more)

    def weighed(out: Array, lse: Array) -> Array:
        return out * jnp.swapaxes(jnp.exp(lse - both), 1, 2)[..., None]

    return weighed(out, lse) + weighed(more, of_more), both


def _visit(
    kernel: Kernel,
    query: Array,
    key: Array,
    value: Array,
    start: Array | None,
    end: Array,
    total: tuple[Array, Array],
) -> tuple[Array, Array]:
    """`total` merged with the block, in parts that the kernel can take."""

    def part(total: Any, keys: tuple[Array, Array], first: int | Array) -> Any:
        own = _clipped(start, end, first, keys[0].shape[1])
        return jax.lax.cond(
            _sees_any(*own),
            lambda total: merge(total, kernel.forward(query, *keys, *own)),
            lambda total: total,
            total,
        )

    size = kernel.most_keys(query.shape[1])
    if key.shape[1] <= size:
        return part(total, (key, value), 0)
    stacked, firsts = _stacked(key, value, size)
    total, _ = jax.lax.scan(
        lambda total, each: (part(total, each[0], each[1]), None), total, (stacked, firsts)
    )
    return total


def _visit_back(
    kernel: Kernel,
    query: Array,
    key: Array,
    value: Array,
    start: Array | None,
    end: Array,
    gradient: Array,
    lse: Array,
    delta: Array,
    dquery: Array,
) -> tuple[Array, Array, Array]:
    """`dquery` with this block's share, and the share of these queries in the gradients of its keys and values."""

    def part(dquery: Array, keys: tuple[Array, Array], first: int | Array) -> Any:
        own = _clipped(start, end, first, keys[0].shape[1])

        def computed(dquery: Array) -> Any:
            share, *block = kernel.backward(query, *keys, *own, gradient, lse, delta)
            return dquery + share, tuple(block)

        def skipped(dquery: Array) -> Any:
            return dquery, tuple(jnp.zeros(x.shape, jnp.float32) for x in keys)

        return jax.lax.cond(_sees_any(*own), computed, skipped, dquery)

    size = kernel.most_keys(query.shape[1])
    if key.shape[1] <= size:
        dquery, (dkey, dvalue) = part(dquery, (key, value), 0)
        return dquery, dkey, dvalue
    stacked, firsts = _stacked(key, value, size)
    dquery, blocks = jax.lax.scan(
        lambda dquery, each: part(dquery, each[0], each[1]), dquery, (stacked, firsts)
    )
    dkey, dvalue = (
        jnp.moveaxis(x, 0, 1).reshape(len(key), -1, *key.shape[2:])[:, : key.shape[1]]
        for x in blocks
    )
    return dquery, dkey, dvalue


def _stacked(key: Array, value: Array, size: int) -> tuple[tuple[Array, Array], Array]:
    """Keys and values in parts of `size`, `[parts, b, size, g, d]`, padded, and each part's first position."""
    batch, length = key.shape[:2]
    count = -(-length // size)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, count * size - length), (0, 0), (0, 0)))
        return jnp.moveaxis(padded.reshape(batch, count, size, *x.shape[2:]), 1, 0)

    return (split(key), split(value)), jnp.arange(count) * size


# ---- the dense kernel ---------------------------------------------------------------------------


def _scores(
    query: Array, key: Array, start: Array | None, end: Array
) -> tuple[Float[Array, "b g q r k"], Array]:
    """Scores with heads by group, and which of them are visible."""
    batch, queries, heads, head_dim = query.shape
    groups = key.shape[2]
    grouped = query.reshape(batch, queries, groups, heads // groups, head_dim)
    scores = jnp.einsum("bqgrd,bkgd->bgqrk", grouped, key, preferred_element_type=jnp.float32)
    index = jnp.arange(key.shape[1])
    visible = index < end[:, :, None]
    if start is not None:
        visible &= index >= start[:, :, None]
    return scores, visible[:, None, :, None]


def _dense_forward(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k g d"],
    value: Float[Array, "b k g d"],
    start: Ends | None,
    end: Ends,
) -> tuple[Float[Array, "b q h d"], Float[Array, "b h q"]]:
    scores, visible = _scores(query, key, start, end)
    scores = jnp.where(visible, scores, NOTHING)
    top = scores.max(-1, keepdims=True)
    weights = jnp.where(visible, jnp.exp(scores - top), 0.0)
    total = weights.sum(-1)
    seen = jnp.einsum("bgqrk,bkgd->bqgrd", weights.astype(value.dtype), value,
                      preferred_element_type=jnp.float32)  # fmt: skip
    out = seen / jnp.maximum(jnp.moveaxis(total, 1, 2), 1e-37)[..., None]
    lse = jnp.where(total > 0, jnp.log(jnp.maximum(total, 1e-37)) + top[..., 0], NOTHING)
    return out.reshape(query.shape), _by_head(lse)


def _dense_backward(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k g d"],
    value: Float[Array, "b k g d"],
    start: Ends | None,
    end: Ends,
    gradient: Float[Array, "b q h d"],
    lse: Float[Array, "b h q"],
    delta: Float[Array, "b h q"],
) -> tuple[Float[Array, "b q h d"], Float[Array, "b k g d"], Float[Array, "b k g d"]]:
    groups = key.shape[2]
    scores, visible = _scores(query, key, start, end)
    lse, delta = (_by_group(x, groups)[..., None] for x in (lse, delta))
    weights = jnp.where(visible, jnp.exp(scores - lse), 0.0)
    grouped, out = (
        x.reshape(*x.shape[:2], groups, -1, x.shape[-1]) for x in (query, gradient)
    )  # fmt: skip
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    dvalue = product("bgqrk,bqgrd->bkgd", weights.astype(gradient.dtype), out)
    dweights = product("bqgrd,bkgd->bgqrk", out, value)
    dscores = (weights * (dweights - delta)).astype(query.dtype)
    dquery = product("bgqrk,bkgd->bqgrd", dscores, key)
    dkey = product("bgqrk,bqgrd->bkgd", dscores, grouped)
    return dquery.reshape(query.shape), dkey, dvalue


def _by_head(x: Float[Array, "b g q r"]) -> Float[Array, "b h q"]:
    batch, groups, queries, each = x.shape
    return jnp.swapaxes(x, 2, 3).reshape(batch, groups * each, queries)


def _by_group(x: Float[Array, "b h q"], groups: int) -> Float[Array, "b g q r"]:
    batch, heads, queries = x.shape
    return jnp.swapaxes(x.reshape(batch, groups, heads // groups, queries), 2, 3)


def _dense_keys(queries: int) -> int:
    """Keys per block; the scores of a block are `_SCORES` per head at most, or those of 128 keys."""
    return max(_SCORES // queries // 128 * 128, 128)


DENSE = Kernel(_dense_forward, _dense_backward, _dense_keys)
"""Products with all scores of a part of a block in memory: for every platform."""
