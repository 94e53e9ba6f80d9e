"""Text from a prefix: prefill once, then token by token with a KV cache (model.md section 10)."""

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
from tuna_jax.models import tuna
from tuna_jax.models.cpu_fast_paths import unstack, unstacks
from tuna_jax.models.layers import Params
from tuna_jax.models.logical_sharding import LogicalSharding, use_sharding

Choose = Callable[[Array, Array], Array]  # (logits, key) -> the next token of each row

CHUNK = 8
"""Tokens that a stream hands over at once."""


class Decoded(NamedTuple):
    """Generated text.

    Attributes:
      tokens: ids; a row that ended holds `eos` once and `eos` after it.
      lengths: tokens of each row before its `eos`.
      logits: float32 logits of every step, or None.
    """

    tokens: Int[Array, "b n"]
    lengths: Int[Array, " b"]
    logits: Float[Array, "b n v"] | None


class _State(NamedTuple):
    step: Array
    cache: Cache
    logits: Array
    done: Array
    tokens: Array
    kept: Array | None


def choose(
    logits: Float[Array, "b v"], key: Array, temperature: float, top_k: int, top_p: float
) -> Int[Array, " b"]:
    """The next token: greedy at temperature 0, else sampled among the `top_k` likeliest and the `top_p` nucleus.

    `key` is one for all rows, or a vector with one for each row, which is then sampled as if it were alone.
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
        # The token that crosses top_p still belongs to the nucleus, so the likeliest always does.
        least = jnp.min(jnp.where(before <= top_p, ordered, jnp.inf), -1, keepdims=True)
        logits = jnp.where(logits < least, floor, logits)
    draw = jax.vmap(jax.random.categorical) if key.ndim else jax.random.categorical
    return draw(key, logits).astype(jnp.int32)


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
      prefix: prompts with their pictures.
      key: PRNG key, or one for each row (`choose`); unused when greedy.
      eos: the id that ends a row; negative never does.
      max_new_tokens: most tokens a row gets.
      temperature: 0 is greedy.
      top_k: sample among this many likeliest; 0 among all.
      top_p: sample within this much probability; 1 within all.
      keep_logits: also return every step's logits.
      sharding: how activations lie over the devices, see `images.sample`.
    """
    chosen = functools.partial(choose, temperature=temperature, top_k=top_k, top_p=top_p)
    with use_sharding(sharding):
        return _continue(config, params, prefix, key, eos, max_new_tokens, chosen, keep_logits)


def _continue(
    config: TunaConfig,
    params: Params,
    prefix: Prefix,
    key: Array,
    eos: int | Array,
    max_new_tokens: int,
    choose: Choose,
    keep_logits: bool,
) -> Decoded:
    start = _begin(config, params, prefix, eos, max_new_tokens, keep_logits)
    end = _go_on(config, params, prefix.lengths, key, eos, choose, start, max_new_tokens)
    ended = end.tokens == eos
    lengths = jnp.where(ended.any(1), jnp.argmax(ended, 1), max_new_tokens)
    return Decoded(end.tokens, lengths, end.kept)


def _begin(
    config: TunaConfig,
    params: Params,
    prefix: Prefix,
    eos: int | Array,
    max_new_tokens: int,
    keep_logits: bool,
) -> _State:
    """The state after the prefix, before the first token."""
    batch, length = prefix.tokens.shape
    cache, hidden = prefill(config, params, prefix, length + max_new_tokens, with_flow_head=False)
    logits = tuna.logits(config, params, last_hidden(hidden, prefix.lengths))[:, 0]
    kept = jnp.zeros((batch, max_new_tokens, logits.shape[-1])) if keep_logits else None
    return _State(
        jnp.int32(0),
        unstack(cache) if unstacks(config) else cache,
        logits,
        jnp.zeros((batch,), bool),
        jnp.full((batch, max_new_tokens), eos, jnp.int32),
        kept,
    )


def _go_on(
    config: TunaConfig,
    params: Params,
    lengths: Int[Array, " b"],
    key: Array,
    eos: int | Array,
    choose: Choose,
    start: _State,
    until: int | Array,
) -> _State:
    """The state after `until` tokens, or after all rows have ended."""
    fold_in = jax.vmap(jax.random.fold_in, (0, None)) if key.ndim else jax.random.fold_in
    params = prepared(config, params)

    def unfinished(state: _State) -> Array:
        return (state.step < until) & ~state.done.all()

    def advance(state: _State) -> _State:
        token = choose(state.logits, fold_in(key, state.step))
        token = jnp.where(state.done, eos, token)
        kept = state.kept
        if kept is not None:
            kept = jax.lax.dynamic_update_index_in_dim(kept, state.logits, state.step, 1)
        logits, cache = next_logits(config, params, state.cache, lengths + state.step, token)
        tokens = jax.lax.dynamic_update_index_in_dim(state.tokens, token, state.step, 1)
        return _State(state.step + 1, cache, logits, state.done | (token == eos), tokens, kept)

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
    """What `generate` returns as `tokens`, a part at a time; a row that ended has `eos` from then on.

    One program runs the prefix and another `chunk` tokens, on a cache that is handed from call to call and never
    copied. While the caller has one part the device makes the next, so the host waits once a part and not once a token.

    Args:
      config, params, prefix, key, eos, max_new_tokens, temperature, top_k, top_p, sharding: as there.
      chunk: tokens of a part; the last one may have fewer.
    """
    chosen = (temperature, top_k, top_p)
    state = _prefilled(config, params, prefix, eos, max_new_tokens, sharding)

    def further(state: _State) -> tuple[_State, Array, Array]:
        return _further(config, params, prefix.lengths, key, eos, state, chunk, chosen, sharding)

    state, tokens, ended = further(state)
    for begin in range(0, max_new_tokens, chunk):
        part, last = tokens, ended
        if begin + chunk < max_new_tokens:
            state, tokens, ended = further(state)
        yield np.asarray(part)[:, : max_new_tokens - begin]
        if last:
            return


@functools.partial(jax.jit, static_argnames=("config", "max_new_tokens", "sharding"))
def _prefilled(
    config: TunaConfig,
    params: Params,
    prefix: Prefix,
    eos: int | Array,
    max_new_tokens: int,
    sharding: LogicalSharding | None,
) -> _State:
    with use_sharding(sharding):
        return _begin(config, params, prefix, eos, max_new_tokens, keep_logits=False)


@functools.partial(
    jax.jit,
    static_argnames=("config", "chunk", "chosen", "sharding"),
    donate_argnames="state",
)
def _further(
    config: TunaConfig,
    params: Params,
    lengths: Int[Array, " b"],
    key: Array,
    eos: int | Array,
    state: _State,
    chunk: int,
    chosen: tuple[float, int, float],
    sharding: LogicalSharding | None,
) -> tuple[_State, Int[Array, "b n"], Bool[Array, ""]]:
    """The state after `chunk` more tokens, those tokens, and whether all rows have ended."""
    temperature, top_k, top_p = chosen
    how = functools.partial(choose, temperature=temperature, top_k=top_k, top_p=top_p)
    room = state.tokens.shape[1]
    with use_sharding(sharding):
        until = jnp.minimum(state.step + chunk, room)
        end = _go_on(config, params, lengths, key, eos, how, state, until)
    # Padded, for a slice that reaches beyond the end would begin earlier.
    padded = jnp.pad(end.tokens, ((0, 0), (0, chunk)))
    part = jax.lax.dynamic_slice_in_dim(padded, state.step, chunk, 1)
    return end, part, end.done.all()
