"""Continuous batching of text: a cache with a fixed number of slots, one per answer (model.md section 10).

A request's prompt is prefilled and inserted into a free slot; `decode` then advances all occupied slots together, and
returns as soon as one of them ends, so that the next request can take its slot. The shapes never change: one program
per shape of prompts, and one per number of rows that are decoded.

Each row has its own sampling options and its own key, so that an answer does not depend on what is decoded next to it.
`text_decoder.generate` is the same for a batch that begins and ends together, and shares the code.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from tuna_jax.config import TunaConfig
from tuna_jax.inference.generation.prefix_cache import (
    Cache,
    Prefix,
    cleared_cache,
    first_rows,
    last_hidden,
    next_logits,
    prefill,
    prepared,
    with_first_rows,
    with_rows,
)
from tuna_jax.inference.generation.text_decoder import choose_by_row
from tuna_jax.models import tuna
from tuna_jax.models.layers import Params
from tuna_jax.models.logical_sharding import LogicalSharding, use_sharding

CHUNK = 8
"""The largest number of tokens per call of `decode`."""


class RowOptions(NamedTuple):
    """Options of each of b rows.

    Attributes:
      keys: PRNG key data, see `batching.key_data`.
      temperature: sampling temperature; 0 is greedy.
      top_k: sample among the `top_k` likeliest tokens; 0: among all.
      top_p: sample within the nucleus of this probability; 1: among all tokens.
    """

    keys: UInt32[Array, "b words"]
    temperature: Float[Array, " b"]
    top_k: Int[Array, " b"]
    top_p: Float[Array, " b"]


class TextSlots(NamedTuple):
    """The state of all slots between two tokens.

    Attributes:
      cache: keys and values of every slot's prompt and tokens.
      logits: of every slot's next token.
      position: at which its next token is written.
      step: number of tokens that it has generated.
      options: its options.
    """

    cache: Cache
    logits: Float[Array, "s v"]
    position: Int[Array, " s"]
    step: Int[Array, " s"]
    options: RowOptions


class Decoded(NamedTuple):
    """What a call of `decode` generated.

    Attributes:
      tokens: ids; of an occupied slot the first `count` are valid.
      count: tokens that each occupied slot has received, at least 1 if one is occupied.
      finite: whether the logits that chose a slot's tokens were finite.
    """

    tokens: Int[Array, "r n"]
    count: Int[Array, ""]
    finite: Bool[Array, " r"]


@functools.partial(jax.jit, static_argnames=("config", "slots", "capacity", "sharding"))
def new(
    config: TunaConfig, slots: int, capacity: int, sharding: LogicalSharding | None = None
) -> TextSlots:
    """Empty slots, each with room for `capacity` tokens."""
    with use_sharding(sharding):
        cache = cleared_cache(config, slots, capacity, with_flow_head=False)
        zeros = jnp.zeros(slots, jnp.int32)
        words = jax.random.key_data(jax.random.key(0)).size
        options = RowOptions(
            jnp.zeros((slots, words), jnp.uint32),
            jnp.zeros(slots, jnp.float32),
            zeros,
            jnp.ones(slots, jnp.float32),
        )
        logits = jnp.zeros((slots, config.language.vocabulary), jnp.float32)
        return TextSlots(cache, logits, zeros, zeros, options)


@functools.partial(jax.jit, static_argnames=("config", "sharding"), donate_argnames="slots")
def insert(
    config: TunaConfig,
    params: Params,
    slots: TextSlots,
    prefix: Prefix,
    rows: Int[Array, " b"],
    options: RowOptions,
    sharding: LogicalSharding | None = None,
) -> TextSlots:
    """Prefills prompts and puts them into slots.

    A slot is overwritten as a whole: nothing of its last answer remains, not even a NaN.

    Args:
      config, params: the model.
      slots: the state; it is donated.
      prefix: the prompts. To fill a batch, a row may be there several times, with the same slot.
      rows: the slot of each.
      options: the options of each.
      sharding: how activations are sharded, see `flow_sampler.sample`.
    """
    with use_sharding(sharding):
        length = prefix.tokens.shape[1]
        cache, hidden = prefill(config, params, prefix, length, with_flow_head=False)
        logits = tuna.logits(config, params, last_hidden(hidden, prefix.lengths))[:, 0]
        return TextSlots(
            with_rows(config, slots.cache, cache, rows),
            slots.logits.at[rows].set(logits),
            slots.position.at[rows].set(prefix.lengths),
            slots.step.at[rows].set(0),
            jax.tree.map(lambda old, new: old.at[rows].set(new), slots.options, options),
        )


@functools.partial(
    jax.jit,
    static_argnames=("config", "rows", "keys", "chunk", "sharding"),
    donate_argnames="slots",
)
def decode(
    config: TunaConfig,
    params: Params,
    slots: TextSlots,
    occupied: Bool[Array, " r"],
    most: int | Int[Array, ""],
    eos: int | Int[Array, ""],
    *,
    rows: int,
    keys: int | None = None,
    chunk: int = CHUNK,
    sharding: LogicalSharding | None = None,
) -> tuple[TextSlots, Decoded]:
    """Advances the occupied ones of the first `rows` slots, until one of them ends or each has `most` more tokens.

    Args:
      config, params: the model.
      slots: the state; it is donated.
      occupied: which of the slots have an unfinished answer.
      most: tokens to generate, at most `chunk`.
      eos: the id that ends an answer.
      rows: number of slots to compute, the length of `occupied`.
      keys: positions of the cache to compute with: the occupied slots need no more. None: all.
      chunk: the size of the result.
      sharding: how activations are sharded, see `flow_sampler.sample`.
    """
    with use_sharding(sharding):
        capacity = jax.tree.leaves(slots.cache)[0].shape[-2]
        is_part = rows < len(slots.position) or (keys or capacity) < capacity
        part = slots
        if is_part:
            part = TextSlots(
                first_rows(config, slots.cache, rows, keys or capacity),
                *jax.tree.map(lambda leaf: leaf[:rows], slots[1:]),
            )
        loop_params = prepared(config, params)
        row_keys = jax.random.wrap_key_data(part.options.keys)
        options = part.options

        def unfinished(state: tuple) -> Array:
            return (state[0] < most) & ~state[-1] & occupied.any()

        def advance(state: tuple) -> tuple:
            index, cache, logits, position, step, tokens, finite, _ = state
            at_step = jax.vmap(jax.random.fold_in)(row_keys, step)
            token = choose_by_row(
                logits, at_step, options.temperature, options.top_k, options.top_p
            )
            token = jnp.where(occupied, token, eos)
            finite &= ~occupied | jnp.isfinite(jnp.max(logits, -1))
            logits, cache = next_logits(config, loop_params, cache, position, token)
            tokens = jax.lax.dynamic_update_index_in_dim(tokens, token, index, 1)
            ended = (occupied & (token == eos)).any()
            # A slot that is not occupied stays where it is, however long it is idle.
            forward = occupied.astype(jnp.int32)
            return (
                index + 1,
                cache,
                logits,
                position + forward,
                step + forward,
                tokens,
                finite,
                ended,
            )

        start = (
            jnp.int32(0),
            part.cache,
            part.logits,
            part.position,
            part.step,
            jnp.full((rows, chunk), eos, jnp.int32),
            jnp.ones(rows, bool),
            jnp.bool_(False),
        )
        count, cache, logits, position, step, tokens, finite, _ = jax.lax.while_loop(
            unfinished, advance, start
        )
        end = TextSlots(cache, logits, position, step, options)
        if is_part:
            rest = jax.tree.map(
                lambda all_rows, first: all_rows.at[:rows].set(first), slots[1:], tuple(end[1:])
            )
            end = TextSlots(with_first_rows(slots.cache, cache), *rest)
        return end, Decoded(tokens, count, finite)
