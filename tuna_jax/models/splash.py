"""Omni attention in JAX's splash kernel for TPUs: each query sees one interval of keys, without an S x S mask.

The kernel's mask is a function of one number per query and a key's index. Here that number is the end of the interval.
Where intervals do not all start at 0 (packing), it has both ends, `start << 16 | end`, and the kernel then runs on
blocks of at most `_PACKED_KEYS` keys, whose outputs are merged (`models/ring.py`). The blocks of keys that a block of
queries needs follow from the intervals too; they are computed on the device, for every example. `compat/splash.py`
constructs the kernel, and `tests/models/test_splash.py` compares it with the dense attention.

`kernel` is a visit of ring attention.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tuna_jax.compat.splash import (
    attention_kernel,
    backward_of_block,
    forward_of_block,
    mask_info,
)
from tuna_jax.models import ring
from tuna_jax.models.layers import ATTENTION
from tuna_jax.models.logical_sharding import local, platform

# Keys of a block whose intervals are packed; they must be fewer than 65,536. Most sizes of blocks divide it.
_PACKED_KEYS = 61_440
# For longer sequences the fused backward pass, which keeps a gradient of the queries for every `_KEYS_AT_ONCE` keys,
# needs too much memory for the time that it saves.
_FUSED_TOKENS = 4_096
# Keys that the fused backward pass has in the core's own memory at a time. Gradients of the queries are sums over such
# parts, each written to memory, so there should be one part; inside a part, hidden keys are not skipped.
_KEYS_AT_ONCE = 2_048
# Up to this number of blocks of keys, the rows of a batch share their maps.
_SHARED_BLOCKS = 2


class BlockMaps(NamedTuple):
    """The blocks of keys that a block of queries needs, and the next block.

    Attributes:
      runs: 1 where the pair is computed.
      next_keys: the block of keys of the pair if it runs, else of the next pair that runs, row by row: the kernel
        prefetches it.
      next_queries: the same column by column, for the gradients of keys and values.
    """

    runs: Int[Array, "q k"]
    next_keys: Int[Array, "q k"]
    next_queries: Int[Array, "q k"]


def block_maps(
    start: Int[Array, " s"], end: Int[Array, " s"], block: int, keys: int, size: int | None = None
) -> BlockMaps:
    """The maps of one example.

    Args:
      start, end: each query's interval of keys; their length is a multiple of `block`.
      block: queries per block.
      keys: number of blocks of keys.
      size: keys per block; None: `block`.
    """
    size = size or block
    # A block of which a query sees nothing has an empty interval, which may begin after the last key.
    low = jnp.minimum(start.reshape(-1, block).min(1)[:, None] // size, keys - 1)
    high = -(-end.reshape(-1, block).max(1)[:, None] // size)
    index = jnp.arange(keys)
    runs = (index >= low) & (index < high)
    # The blocks of a row are one interval; after it comes the first block of the next row, and after the last row that
    # of the next head.
    next_keys = jnp.where(index < low, low, jnp.where(runs, index, jnp.roll(low, -1)))
    count = len(low)
    mine = jnp.where(runs, jnp.arange(count)[:, None], count)
    ahead = jax.lax.cummin(mine, axis=0, reverse=True)
    next_queries = jnp.where(ahead < count, ahead, mine.min(0)) % count
    return BlockMaps(*(x.astype(jnp.int32) for x in (runs, next_keys, next_queries)))


def block_size(length: int) -> int:
    """Queries, and keys, per block: a multiple of 128 up to 640.

    It minimises the cost of padding, which is computed, plus the overhead of a block, about that of 128 of its rows.
    """
    sizes = range(128, 641, 128)
    return min(sizes, key=lambda size: (-(-length // size) * size) ** 2 * (1 + 128 / size))


def keys_at_once(length: int, block: int) -> int:
    """Keys per part in the fused backward pass, for `length` padded keys: the fewest equal parts of whole blocks."""
    blocks = length // block
    fitting = (n for n in range(1, blocks + 1) if blocks % n == 0 and length // n <= _KEYS_AT_ONCE)
    return length // next(fitting, blocks)


def attention(
    query: Float[Array, "b s h d"],
    key: Float[Array, "b s g d"],
    value: Float[Array, "b s g d"],
    visible_end: Int[Array, "b s"] | None = None,
    visible_start: Int[Array, "b s"] | None = None,
    *,
    block: int | None = None,
) -> Float[Array, "b s h d"]:
    """Grouped-query attention of a sequence over itself in which each query sees one interval of keys.

    On other platforms than TPUs the kernel is interpreted, which is exact and slow. On a mesh each device runs it on
    its own samples, heads and queries, over all keys.

    Args:
      query, key, value: with separate heads; `h` is a multiple of `g`.
      visible_end: keys at or after it are hidden. Every query must see at least one key. None hides none: for the
        tokens of a frame in the representation encoder, and sharded as those are.
      visible_start: keys before it are hidden (packing); None hides none.
      block: queries, and keys, per block of the kernel, a multiple of 128; None: `block_size`.
    """
    tokens = "tokens" if visible_end is None else "sequence"
    interpret = platform() != "tpu"
    if visible_start is not None and key.shape[1] > _PACKED_KEYS:
        assert visible_end is not None
        blocks = kernel(interpret, block)
        return ring.attention(query, key, value, visible_end, visible_start, blocks, {})
    key, value = ring.matched_heads(query, key, value)
    queries = ("batch", tokens, "heads", None)
    keys = ("batch", "keys", "kv_heads", None)
    ends = [x for x in (visible_end, visible_start) if x is not None]
    axes = (queries, keys, keys, *[("batch", tokens)] * len(ends))

    def run(query: Array, key: Array, value: Array, *ends: Array) -> Array:
        end, start = (*ends, None, None)[:2]
        return _on_one_device(query, key, value, start, end, block=block, interpret=interpret)

    return local(run, axes, queries)(query, key, value, *ends)


@functools.cache
def kernel(interpret: bool, block: int | None = None) -> ring.Kernel:
    """A visit of ring attention; `block` as for `attention`."""
    options = {"block": block, "interpret": interpret}
    return ring.Kernel(
        functools.partial(_block_forward, **options),
        functools.partial(_block_backward, **options),
        lambda queries: _PACKED_KEYS,
    )


class _Masks(NamedTuple):
    """What the kernel knows of the visible keys.

    Attributes:
      numbers: of every query, for `sees`; `[rows, q]` or, if it is the same for all rows, `[q]`.
      maps: of the forward pass, and of the gradients of keys and values; with or without rows, too.
      axes: of rows, for `vmap`: 0 or None for each of the two.
      sees: the kernel's mask function.
      block, part: queries, and keys, of a block; keys that the pass for the gradients of keys and values has at a time.
      fused: compute all gradients in one pass.
    """

    numbers: Array
    maps: tuple[BlockMaps, BlockMaps]
    axes: tuple[int | None, int | None]
    sees: Callable[[Array, Array], Array]
    block: int
    part: int
    fused: bool


def _masks(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k g d"],
    start: Int[Array, "b q"] | None,
    end: Int[Array, "b q"] | None,
    block: int | None,
) -> _Masks:
    """The masks of queries that see `start <= key < end`; without an end they see all keys."""
    queries, head_dim = query.shape[1], query.shape[3]
    block = block or block_size(queries)
    padded = queries + -queries % block
    length = key.shape[1] + -key.shape[1] % block
    fused = length <= _FUSED_TOKENS
    part = keys_at_once(length, block) if fused else block

    def maps(start: Array, end: Array) -> tuple[BlockMaps, BlockMaps]:
        forward = block_maps(start, end, block, length // block)
        return forward, block_maps(start, end, block, length // part, part)

    def masks(numbers: Array, maps: Any, axes: tuple[int | None, int | None]) -> _Masks:
        sees = _before if start is None else _sees
        return _Masks(numbers, maps, axes, sees, block, part, fused)

    # If all rows have the same maps, they are an axis of the kernel's grid; otherwise `vmap` makes a loop that copies
    # each row in and out. With up to two blocks, where its own maps could save a row one pair of four, all pairs are
    # computed, except with heads of 64 channels, for which the loop is faster: in the kernel's layout they waste half
    # of the lanes.
    zeros = jnp.zeros(padded, jnp.int32)
    if end is None:
        return masks(zeros + key.shape[1], maps(zeros, zeros + length), (None, None))
    # Padded queries see the keys of the last query, so that their block needs no other keys.
    tail = ((0, 0), (0, padded - queries))
    end = jnp.pad(end.astype(jnp.int32), tail, mode="edge")
    first = jnp.zeros_like(end)
    if start is not None:
        first = jnp.pad(start.astype(jnp.int32), tail, mode="edge")
    numbers = end if start is None else _packed(first, end)
    if len(query) == 1:
        return masks(numbers, maps(first[0], end[0]), (0, None))
    if length // block <= _SHARED_BLOCKS and head_dim % 128 == 0:
        return masks(numbers, maps(zeros, zeros + length), (0, None))
    return masks(numbers, jax.vmap(maps)(first, end), (0, 0))


def _kernels_view(x: Float[Array, "b s n d"], block: int) -> Float[Array, "b n p c"]:
    """Heads before tokens; padded to whole blocks, and to channels that the kernel takes. Padded channels are zero in
    queries and keys, and dropped from the values."""
    channels = -x.shape[3] % (64 if x.shape[3] <= 64 else 128)
    padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, channels)))
    return jnp.swapaxes(padded, 1, 2)


def _ours(x: Float[Array, "b n p c"], like: Float[Array, "b s n d"]) -> Float[Array, "b s n d"]:
    return jnp.swapaxes(x, 1, 2)[:, : like.shape[1], :, : like.shape[3]]


def _on_one_device(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k g d"],
    value: Float[Array, "b k g d"],
    start: Int[Array, "b q"] | None = None,
    end: Int[Array, "b q"] | None = None,
    *,
    block: int | None,
    interpret: bool,
) -> Float[Array, "b q h d"]:
    """The kernel on padded arrays; without an interval all queries see all keys."""
    masks = _masks(query, key, start, end, block)
    # The kernel does not scale the scores.
    scaled = (query.astype(jnp.float32) * query.shape[3] ** -0.5).astype(query.dtype)
    arguments: list[Any] = [_kernels_view(x, masks.block) for x in (scaled, key, value)]
    arguments += [masks.numbers, masks.maps]
    run = functools.partial(_one_example, masks=masks, interpret=interpret)
    out = jax.vmap(run, (0, 0, 0, *masks.axes))(*arguments)
    return _ours(out, query)


def _one_example(
    query: Float[Array, "h q d"],
    key: Float[Array, "g k d"],
    value: Float[Array, "g k d"],
    numbers: Int[Array, " q"],
    maps: tuple[BlockMaps, BlockMaps],
    *,
    masks: _Masks,
    interpret: bool,
) -> Float[Array, "h q d"]:
    """The kernel on one row; the second maps are for the gradients of keys and values, `part` keys at a time."""
    forward, backward = maps
    kernel = attention_kernel(
        mask_info(forward.next_keys, forward.runs, numbers),
        mask_info(backward.next_queries, backward.runs, numbers),
        mask_function=masks.sees,
        block=masks.block,
        backward_keys=masks.part,
        fused=masks.fused,
        output_name=ATTENTION,
        interpret=interpret,
    )
    return kernel(query, key, value)


def _block_forward(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k g d"],
    value: Float[Array, "b k g d"],
    start: Int[Array, "b q"] | None,
    end: Int[Array, "b q"],
    *,
    block: int | None,
    interpret: bool,
) -> tuple[Float[Array, "b q h d"], Float[Array, "b h q"]]:
    """`ring.Kernel.forward`."""
    masks = _masks(query, key, start, end, block)

    def one(query: Array, key: Array, value: Array, numbers: Array, maps: Any) -> Any:
        info = mask_info(maps[0].next_keys, maps[0].runs, numbers)
        options = {"mask_function": masks.sees, "block": masks.block, "interpret": interpret}
        return forward_of_block(info, query, key, value, **options)

    arguments: list[Any] = [_kernels_view(x, masks.block) for x in (query, key, value)]
    arguments += [masks.numbers, masks.maps]
    out, lse = jax.vmap(one, (0, 0, 0, *masks.axes))(*arguments)
    # The kernel divides by zero, or averages hidden keys, where a query sees none.
    sees = end > (0 if start is None else start)
    out = jnp.where(sees[:, :, None, None], _ours(out, query).astype(jnp.float32), 0.0)
    return out, jnp.where(sees[:, None], lse[:, :, : query.shape[1]], ring.NOTHING)


def _block_backward(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k g d"],
    value: Float[Array, "b k g d"],
    start: Int[Array, "b q"] | None,
    end: Int[Array, "b q"],
    gradient: Float[Array, "b q h d"],
    lse: Float[Array, "b h q"],
    delta: Float[Array, "b h q"],
    *,
    block: int | None,
    interpret: bool,
) -> tuple[Float[Array, "b q h d"], Float[Array, "b k g d"], Float[Array, "b k g d"]]:
    """`ring.Kernel.backward`."""
    masks = _masks(query, key, start, end, block)

    def one(
        query: Array, key: Array, value: Array, gradient: Array, lse: Array, delta: Array,
        numbers: Array, maps: Any,
    ) -> Any:  # fmt: skip
        forward, backward = maps
        return backward_of_block(
            mask_info(forward.next_keys, forward.runs, numbers),
            mask_info(backward.next_queries, backward.runs, numbers),
            query, key, value, gradient, lse, delta,
            mask_function=masks.sees,
            block=masks.block,
            backward_keys=masks.part,
            fused=masks.fused,
            interpret=interpret,
        )  # fmt: skip

    arrays = query, key, value, gradient.astype(query.dtype)
    arguments: list[Any] = [_kernels_view(x, masks.block) for x in arrays]
    # Padded queries and their gradients are zero, so they add nothing.
    tail = ((0, 0), (0, 0), (0, -query.shape[1] % masks.block))
    arguments += [*(jnp.pad(x, tail) for x in (lse, delta)), masks.numbers, masks.maps]
    gradients = jax.vmap(one, (*[0] * 6, *masks.axes))(*arguments)
    dquery, dkey, dvalue = (
        _ours(x, like).astype(jnp.float32)
        for x, like in zip(gradients, (query, key, value), strict=True)
    )
    return dquery, dkey, dvalue


def _packed(start: Array, end: Array) -> Array:
    """Both ends of every query's interval in one number, which the kernel passes to `_sees`."""
    return (start << 16) | end


def _sees(both: Array, key: Array) -> Array:
    """Whether the queries with these intervals see the keys with these indices."""
    # The shift extends the sign of a start of 32,768 or more, hence the first mask.
    return (key >= ((both >> 16) & 0xFFFF)) & (key < (both & 0xFFFF))


def _before(end: Array, key: Array) -> Array:
    """The same for intervals that start at 0, of which the number is the end."""
    return key < end
