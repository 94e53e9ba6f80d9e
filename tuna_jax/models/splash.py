"""Omni attention in JAX's splash kernel for TPUs: each query sees one interval of keys, without an S x S mask.

The kernel's mask is a function of one number per query and a key's index. Here that number has both ends of the
interval, `start << 16 | end`, so a sequence has fewer than 65,536 tokens. The blocks of keys that a block of queries
needs follow from the intervals too; they are computed on the device, for every example. `compat/splash.py` constructs
the kernel, and `tests/models/test_splash.py` compares it with the dense attention.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tuna_jax.compat.splash import attention_kernel, mask_info
from tuna_jax.models.layers import ATTENTION
from tuna_jax.models.logical_sharding import local, parts, platform

MOST_TOKENS = 65_535
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
    low = start.reshape(-1, block).min(1)[:, None] // size
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

    Raises:
      ValueError: the sequence is too long.
    """
    length, heads, groups = query.shape[1], query.shape[2], key.shape[2]
    if length > MOST_TOKENS:
        raise ValueError(
            f"attention_backend 'splash' supports at most {MOST_TOKENS} tokens per sequence, not {length}: "
            f"shorten the sequences (data lengths), or choose attention_backend 'xla'"
        )
    tokens = "tokens" if visible_end is None else "sequence"
    if visible_end is not None and visible_start is None:
        visible_start = jnp.zeros_like(visible_end)
    # The heads may be split into more parts than there are heads of keys: each part then gets copies of those it needs.
    copies = parts("heads", heads)
    copies //= math.gcd(groups, copies)
    if copies > 1:
        key, value = (jnp.repeat(x, copies, axis=2) for x in (key, value))
    run = functools.partial(_on_one_device, block=block, interpret=platform() != "tpu")
    queries = ("batch", tokens, "heads", None)
    keys = ("batch", "keys", "kv_heads", None)
    ends = [x for x in (visible_start, visible_end) if x is not None]
    axes = (queries, keys, keys, *[("batch", tokens)] * len(ends))
    return local(run, axes, queries)(query, key, value, *ends)


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
    """The kernel on padded arrays, heads before tokens; without an interval all queries see all keys."""
    queries, head_dim = query.shape[1], query.shape[3]
    block = block or block_size(queries)
    # The kernel does not scale the scores. Padded channels are zero in queries and keys, and dropped from the values.
    query = (query.astype(jnp.float32) * head_dim**-0.5).astype(query.dtype)
    channels = -head_dim % (64 if head_dim <= 64 else 128)

    def padded_heads_first(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, channels)))
        return jnp.swapaxes(padded, 1, 2)

    arguments = padded_heads_first(query), padded_heads_first(key), padded_heads_first(value)
    length = arguments[1].shape[2]
    part = keys_at_once(length, block) if length <= _FUSED_TOKENS else block

    def maps(start: Array, end: Array) -> tuple[BlockMaps, BlockMaps]:
        forward = block_maps(start, end, block, length // block)
        return forward, block_maps(start, end, block, length // part, part)

    # If all rows have the same maps, they are an axis of the kernel's grid; otherwise `vmap` makes a loop that copies
    # each row in and out. With up to two blocks, where its own maps could save a row one pair of four, all pairs are
    # computed, except with heads of 64 channels, for which the loop is faster: in the kernel's layout they waste half
    # of the lanes.
    zeros = jnp.zeros(arguments[0].shape[2], jnp.int32)
    if start is None or end is None:
        numbers = _packed(zeros, zeros + key.shape[1])
        all_maps = maps(zeros, zeros + length)
        axes = (None, None)
    else:
        # Padded queries see the keys of the last query, so that their block needs no other keys.
        tail = ((0, 0), (0, -queries % block))
        start, end = (jnp.pad(x.astype(jnp.int32), tail, mode="edge") for x in (start, end))
        numbers, axes = _packed(start, end), (0, None)
        if len(query) == 1:
            all_maps = maps(start[0], end[0])
        elif length // block <= _SHARED_BLOCKS and head_dim % 128 == 0:
            all_maps = maps(zeros, zeros + length)
        else:
            all_maps, axes = jax.vmap(maps)(start, end), (0, 0)
    run = functools.partial(_one_example, block=block, part=part, interpret=interpret)
    out = jax.vmap(run, (0, 0, 0, *axes))(*arguments, numbers, all_maps)
    return jnp.swapaxes(out, 1, 2)[:, :queries, :, :head_dim]


def _one_example(
    query: Float[Array, "h q d"],
    key: Float[Array, "g k d"],
    value: Float[Array, "g k d"],
    numbers: Int[Array, " q"],
    maps: tuple[BlockMaps, BlockMaps],
    *,
    block: int,
    part: int,
    interpret: bool,
) -> Float[Array, "h q d"]:
    """The kernel on one row; the second maps are for the gradients of keys and values, `part` keys at a time."""
    forward, backward = maps
    kernel = attention_kernel(
        mask_info(forward.next_keys, forward.runs, numbers),
        mask_info(backward.next_queries, backward.runs, numbers),
        mask_function=_sees,
        block=block,
        backward_keys=part,
        fused=key.shape[1] <= _FUSED_TOKENS,
        output_name=ATTENTION,
        interpret=interpret,
    )
    return kernel(query, key, value)


def _packed(start: Array, end: Array) -> Array:
    """Both ends of every query's interval in one number, which the kernel passes to `_sees`."""
    return (start << 16) | end


def _sees(both: Array, key: Array) -> Array:
    """Whether the queries with these intervals see the keys with these indices."""
    # The shift extends the sign of a start of 32,768 or more, hence the first mask.
    return (key >= ((both >> 16) & 0xFFFF)) & (key < (both & 0xFFFF))
