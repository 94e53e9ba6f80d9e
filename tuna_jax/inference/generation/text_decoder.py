"""Text decoding: a prefix runs once, then one token at a time with a KV cache (model.md section 10)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tuna_jax.config import TunaConfig
from tuna_jax.inference.generation.prefix_cache import (
    Cache,
    Prefix,
    last_hidden,
    next_logits,
    prefill,
    prepared,
)
from tuna_jax.inference.not_finite import NotFiniteError
from tuna_jax.models import tuna
from tuna_jax.models.cpu_fast_paths import unstack, unstacks
from tuna_jax.models.layers import Params
from tuna_jax.models.logical_sharding import LogicalSharding, use_sharding

Choose = Callable[[Array, Array], Array]
"""(logits, key) -> the next token of each row."""

CHUNK = 8
"""Tokens per part of a stream."""


class Decoded(NamedTuple):
    """Generated text.

    Attributes:
      tokens: token ids; a row that has ended is filled with `eos`.
      lengths: number of tokens of each row before its `eos`.
      logits: float32 logits of every step, or None.
      finite: whether the logits that chose the tokens of each row were finite; with NaN, `argmax` gives id 0.
    """

    tokens: Int[Array, "b n"]
    lengths: Int[Array, " b"]
    logits: Float[Array, "b n v"] | None
    finite: Bool[Array, " b"]


class DecoderState(NamedTuple):
    """The state between two tokens.

    Attributes:
      step: number of tokens so far.
      cache: cache of the prefix and these tokens.
      logits: logits of the next token.
      done: whether each row has ended.
      tokens: the tokens so far, then `eos`.
      all_logits: the logits of every step so far, or None.
      finite: whether the logits of each row were finite so far.
    """

    step: Array
    cache: Cache
    logits: Float[Array, "b v"]
    done: Bool[Array, " b"]
    tokens: Int[Array, "b n"]
    all_logits: Float[Array, "b n v"] | None
    finite: Bool[Array, " b"]


def choose(
    logits: Float[Array, "b v"], key: Array, temperature: float, top_k: int, top_p: float
) -> Int[Array, " b"]:
    """The next token: greedy at temperature 0, else sampled among the `top_k` likeliest and the `top_p` nucleus.

    `key` is one key for all rows, or a vector with a key per row, which makes rows independent of the batch.
    """
    if temperature == 0.0:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    logits = logits / temperature
    floor = jnp.finfo(jnp.float32).min
    if top_k > 0:
        least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < least, floor, logits)
    if top_p < 1.0:
        ordered = jnp.sort(logits, axis=-1)[:, ::-1]
        before = jnp.cumsum(jax.nn.softmax(ordered, -1), -1) - jax.nn.softmax(ordered, -1)
        # The token that crosses top_p belongs to the nucleus, so the likeliest token always does.
        least = jnp.min(jnp.where(before <= top_p, ordered, jnp.inf), -1, keepdims=True)
        logits = jnp.where(logits < least, floor, logits)
    sample = jax.vmap(jax.random.categorical) if key.ndim else jax.random.categorical
    return sample(key, logits).astype(jnp.int32)


def choose_by_row(
    logits: Float[Array, "b v"],
    keys: Array,
    temperature: Float[Array, " b"],
    top_k: Int[Array, " b"],
    top_p: Float[Array, " b"],
) -> Int[Array, " b"]:
    """`choose` with options of each row: a row gets the token that it gets from `choose` with its own options."""
    greedy = jnp.argmax(logits, -1).astype(jnp.int32)
    floor = jnp.finfo(jnp.float32).min
    is_greedy = temperature == 0.0

    def within_options(logits: Array) -> Array:
        # One sorting serves both: what `top_k` removes is at the end of the order.
        ordered = jnp.sort(logits, axis=-1)[:, ::-1]
        last = jnp.clip(top_k, 1, logits.shape[-1])[:, None] - 1
        least = jnp.take_along_axis(ordered, last, 1)
        removes = (top_k > 0)[:, None]
        logits = jnp.where(removes & (logits < least), floor, logits)
        ordered = jnp.where(removes & (ordered < least), floor, ordered)
        before = jnp.cumsum(jax.nn.softmax(ordered, -1), -1) - jax.nn.softmax(ordered, -1)
        least = jnp.min(jnp.where(before <= top_p[:, None], ordered, jnp.inf), -1, keepdims=True)
        return jnp.where((top_p < 1.0)[:, None] & (logits < least), floor, logits)

    def sampled() -> Array:
        scaled = logits / jnp.where(is_greedy, 1.0, temperature)[:, None]
        restricts = (~is_greedy & ((top_k > 0) | (top_p < 1.0))).any()
        scaled = jax.lax.cond(restricts, within_options, lambda logits: logits, scaled)
        return jax.vmap(jax.random.categorical)(keys, scaled).astype(jnp.int32)

    return jnp.where(is_greedy, greedy, jax.lax.cond(is_greedy.all(), lambda: greedy, sampled))


@functools.partial(
    jax.jit,
    static_argnames=(
        "config",
        "max_new_tokens",
        "temperature",
        "top_k",
        "top_p",
        "keep_logits",
        "sharding",
    ),
)
def generate(
    config: TunaConfig,
    params: Params,
    prefix: Prefix,
    key: Array,
    *,
    eos: int | Array,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    keep_logits: bool = False,
    sharding: LogicalSharding | None = None,
) -> Decoded:
    """Continues every row until `eos` or `max_new_tokens`; stops early when all rows have ended.

    Args:
      config, params: the model.
      prefix: prompts with their input images.
      key: PRNG key, or one per row (see `choose`); unused by greedy decoding.
      eos: the id that ends a row; a negative id never does.
      max_new_tokens: the largest number of tokens per row.
      temperature: sampling temperature; 0 is greedy.
      top_k: sample among the `top_k` likeliest tokens; 0: among all.
      top_p: sample within the nucleus of this probability; 1: among all tokens.
      keep_logits: whether to return the logits of every step too.
      sharding: how activations are sharded, see `flow_sampler.sample`.
    """
    choose_token = functools.partial(choose, temperature=temperature, top_k=top_k, top_p=top_p)
    with use_sharding(sharding):
        start = _initial_state(config, params, prefix, eos, max_new_tokens, keep_logits)
        end = _decode_until(
            config, params, prefix.lengths, key, eos, choose_token, start, max_new_tokens
        )
        is_eos = end.tokens == eos
        lengths = jnp.where(is_eos.any(1), jnp.argmax(is_eos, 1), max_new_tokens)
        return Decoded(end.tokens, lengths, end.all_logits, end.finite)


def _initial_state(
    config: TunaConfig,
    params: Params,
    prefix: Prefix,
    eos: int | Array,
    max_new_tokens: int,
    keep_logits: bool,
) -> DecoderState:
    """The state after the prefix, before the first token."""
    batch, length = prefix.tokens.shape
    cache, hidden = prefill(config, params, prefix, length + max_new_tokens, with_flow_head=False)
    logits = tuna.logits(config, params, last_hidden(hidden, prefix.lengths))[:, 0]
    all_logits = jnp.zeros((batch, max_new_tokens, logits.shape[-1])) if keep_logits else None
    return DecoderState(
        jnp.int32(0),
        unstack(cache)
        if unstacks(config)
        else cache,  # Otherwise every token would stack the layers.
        logits,
        jnp.zeros((batch,), bool),
        jnp.full((batch, max_new_tokens), eos, jnp.int32),
        all_logits,
        jnp.ones((batch,), bool),
    )


def _decode_until(
    config: TunaConfig,
    params: Params,
    lengths: Int[Array, " b"],
    key: Array,
    eos: int | Array,
    choose_token: Choose,
    start: DecoderState,
    until: int | Array,
) -> DecoderState:
    """The state after `until` tokens, or after all rows have ended."""
    fold_in = jax.vmap(jax.random.fold_in, (0, None)) if key.ndim else jax.random.fold_in
    params = prepared(config, params)

    def unfinished(state: DecoderState) -> Array:
        return (state.step < until) & ~state.done.all()

    def advance(state: DecoderState) -> DecoderState:
        token = choose_token(state.logits, fold_in(key, state.step))
        token = jnp.where(state.done, eos, token)
        # The largest logit is NaN or infinite if a logit is NaN or positive infinity.
        finite = state.finite & (state.done | jnp.isfinite(jnp.max(state.logits, -1)))
        all_logits = state.all_logits
        if all_logits is not None:
            all_logits = jax.lax.dynamic_update_index_in_dim(
                all_logits, state.logits, state.step, 1
            )
        logits, cache = next_logits(config, params, state.cache, lengths + state.step, token)
        tokens = jax.lax.dynamic_update_index_in_dim(state.tokens, token, state.step, 1)
        step, done = state.step + 1, state.done | (token == eos)
        return DecoderState(step, cache, logits, done, tokens, all_logits, finite)

    return jax.lax.while_loop(unfinished, advance, start)


def stream(
    config: TunaConfig,
    params: Params,
    prefix: Prefix,
    key: Array,
    *,
    eos: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    chunk: int = CHUNK,
    sharding: LogicalSharding | None = None,
) -> Iterator[Int[np.ndarray, "b n"]]:
    """Yields the `tokens` of `generate` in parts; a row that has ended is filled with `eos`.

    One program runs the prefix and another one `chunk` tokens, on a cache that is donated from call to call and never
    copied. The device computes the next part while the caller has the last one, so the host waits once per part and not
    once per token.

    Args:
      config, params, prefix, key, eos, max_new_tokens, temperature, top_k, top_p, sharding: see `generate`.
      chunk: tokens per part; the last part may have fewer.

    Raises:
      NotFiniteError: the logits of a part are not finite; raised in its place.
    """
    sampling = (temperature, top_k, top_p)
    state = start_stream(config, params, prefix, eos, max_new_tokens, sharding)

    def next_part(state: DecoderState) -> tuple[DecoderState, Array, Array, Array]:
        lengths = prefix.lengths
        return _decode_part(config, params, lengths, key, eos, state, chunk, sampling, sharding)

    state, tokens, ended, finite = next_part(state)
    for begin in range(0, max_new_tokens, chunk):
        part, is_last, is_finite = tokens, ended, finite
        if begin + chunk < max_new_tokens:
            state, tokens, ended, finite = next_part(state)
        if not bool(is_finite):
            raise NotFiniteError.of("answer")
        yield np.asarray(part)[:, : max_new_tokens - begin]
        if is_last:
            return


@functools.partial(jax.jit, static_argnames=("config", "max_new_tokens", "sharding"))
def start_stream(
    config: TunaConfig,
    params: Params,
    prefix: Prefix,
    eos: int | Array,
    max_new_tokens: int,
    sharding: LogicalSharding | None,
) -> DecoderState:
    """The state of a stream after the prefix, before the first token."""
    with use_sharding(sharding):
        return _initial_state(config, params, prefix, eos, max_new_tokens, keep_logits=False)


@functools.partial(
    jax.jit,
    static_argnames=("config", "chunk", "sampling", "sharding"),
    donate_argnames="state",
)
def _decode_part(
    config: TunaConfig,
    params: Params,
    lengths: Int[Array, " b"],
    key: Array,
    eos: int | Array,
    state: DecoderState,
    chunk: int,
    sampling: tuple[float, int, float],
    sharding: LogicalSharding | None,
) -> tuple[DecoderState, Int[Array, "b n"], Bool[Array, ""], Bool[Array, ""]]:
    """The state after `chunk` more tokens, those tokens, and whether all rows have ended and were finite."""
    temperature, top_k, top_p = sampling
    choose_token = functools.partial(choose, temperature=temperature, top_k=top_k, top_p=top_p)
    with use_sharding(sharding):
        until = jnp.minimum(state.step + chunk, state.tokens.shape[1])
        end = _decode_until(config, params, lengths, key, eos, choose_token, state, until)
    # Padded because `dynamic_slice` moves a slice that exceeds the array to an earlier start.
    padded = jnp.pad(end.tokens, ((0, 0), (0, chunk)))
    part = jax.lax.dynamic_slice_in_dim(padded, state.step, chunk, 1)
    return end, part, end.done.all(), end.finite.all()
