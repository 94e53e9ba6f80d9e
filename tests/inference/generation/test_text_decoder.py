"""Decoding on the prefix cache against forward passes over whole sequences, its options, and streams."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax.config import preset
from tuna_jax.inference.generation import prefix_cache, text_decoder
from tuna_jax.models import tuna

CONFIG = preset("tiny")
PARAMS = jax.tree.map(
    lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape),
    tuna.init(CONFIG, jax.random.key(0)),
)
# Rows of different lengths.
TOKENS = np.asarray([[1, 2, 3, 4, 5, 6], [1, 7, 8, 6, 0, 0]], np.int32)
LENGTHS = np.asarray([6, 4], np.int32)
POSITIVE = prefix_cache.text_prefix(TOKENS, LENGTHS)


@functools.cache
def _greedy() -> text_decoder.Decoded:
    return text_decoder.generate(
        CONFIG, PARAMS, POSITIVE, jax.random.key(0), eos=-1, max_new_tokens=5, keep_logits=True
    )


@pytest.mark.slow
def test_cached_decoding_equals_forward_passes_over_all_tokens() -> None:
    decoded = _greedy()
    assert decoded.logits is not None
    for row in range(2):
        tokens = TOKENS[row, : LENGTHS[row]].tolist()
        for step in range(5):
            out = tuna.forward(
                CONFIG, PARAMS, jnp.asarray([tokens]), jnp.zeros((1, 0, 2), jnp.int32)
            )
            scores = tuna.logits(CONFIG, PARAMS, out.hidden)[0, -1]
            np.testing.assert_allclose(decoded.logits[row, step], scores, atol=1e-4)
            tokens.append(int(scores.argmax()))
        assert decoded.tokens[row].tolist() == tokens[LENGTHS[row] :]


def test_a_row_ends_at_eos_and_the_other_continues() -> None:
    free = np.asarray(_greedy().tokens)
    eos = int(free[0, 0])
    ended = text_decoder.generate(
        CONFIG, PARAMS, POSITIVE, jax.random.key(0), eos=eos, max_new_tokens=5
    )
    assert ended.tokens[0].tolist() == [eos] * 5
    assert int(ended.lengths[0]) == 0
    stop = free[1].tolist().index(eos) if eos in free[1] else 5
    assert int(ended.lengths[1]) == stop
    assert ended.tokens[1, :stop].tolist() == free[1, :stop].tolist()


SAMPLED = {"temperature": 1.0, "top_k": 40, "top_p": 0.9}


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_a_stream_is_the_result_in_parts(options: dict[str, Any], chunk: int) -> None:
    keys = jax.random.split(jax.random.key(3), 2)
    common: dict[str, Any] = {"eos": -1, "max_new_tokens": 8, **options}
    whole = text_decoder.generate(CONFIG, PARAMS, POSITIVE, keys, **common)
    parts = list(text_decoder.stream(CONFIG, PARAMS, POSITIVE, keys, chunk=chunk, **common))
    assert [part.shape[1] for part in parts] == {1: [1] * 8, 3: [3, 3, 2], 8: [8]}[chunk]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole.tokens)


def test_a_stream_ends_with_its_last_row() -> None:
    free = np.asarray(_greedy().tokens)
    eos = int(free[0, 0])
    options: dict[str, Any] = {"eos": eos, "max_new_tokens": 5}
    key = jax.random.key(0)
    whole = np.asarray(text_decoder.generate(CONFIG, PARAMS, POSITIVE, key, **options).tokens)
    parts = list(text_decoder.stream(CONFIG, PARAMS, POSITIVE, key, chunk=1, **options))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole[:, : len(parts)])
    first_row = prefix_cache.text_prefix(TOKENS[:1], LENGTHS[:1])
    (part,) = text_decoder.stream(CONFIG, PARAMS, first_row, key, chunk=2, **options)
    assert part.tolist() == [[eos, eos]]


def test_a_streams_cache_is_donated_and_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    start_stream = text_decoder.start_stream

    def recorded(*arguments: Any) -> Any:
        states.append(start_stream(*arguments))
        return states[-1]

    monkeypatch.setattr(text_decoder, "start_stream", recorded)
    options: dict[str, Any] = {"eos": -1, "max_new_tokens": 8}
    next(text_decoder.stream(CONFIG, PARAMS, POSITIVE, jax.random.key(0), chunk=2, **options))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(states[0].cache))


def test_unrolled_layers_give_the_same_text() -> None:
    """`unroll` unstacks layers and their caches before the loops, and no loop copies a layer in or out."""
    unrolled = dataclasses.replace(CONFIG, unroll=True)
    options: dict[str, Any] = {"eos": -1, "max_new_tokens": 5, "keep_logits": True}
    decoded = text_decoder.generate(unrolled, PARAMS, POSITIVE, jax.random.key(0), **options)
    np.testing.assert_allclose(decoded.logits, _greedy().logits, atol=1e-5)

    def decode(params: Any) -> Any:
        key = jax.random.key(0)
        return text_decoder.generate(unrolled, params, POSITIVE, key, **options).tokens

    def loops(jaxpr: Any) -> Any:
        for equation in jaxpr.eqns:
            if equation.primitive.name == "while":
                yield equation
            elif "jaxpr" in equation.params:
                yield from loops(equation.params["jaxpr"].jaxpr)

    (loop,) = loops(jax.make_jaxpr(decode)(PARAMS).jaxpr)
    shapes = {variable.aval.shape for variable in loop.invars}
    layer = PARAMS["language"]["layers"]["mlp"]["up"]["kernel"].shape
    assert layer[1:] in shapes and layer not in shapes
    sizes = unrolled.language
    cache = (sizes.layers, len(TOKENS), sizes.kv_heads, TOKENS.shape[1] + 5, sizes.head_dim)
    assert cache[1:] in shapes and cache not in shapes


def test_sampling_is_limited_to_top_k_and_to_the_nucleus() -> None:
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]]))
    keys = jax.random.split(jax.random.key(0), 200)

    def sampled(top_k: int, top_p: float) -> set[int]:
        return {int(text_decoder.choose(logits, key, 1.0, top_k, top_p)[0]) for key in keys}

    assert sampled(2, 1.0) == {0, 1}
    assert sampled(0, 0.6) == {0, 1}
    assert sampled(0, 1.0) == {0, 1, 2, 3}
    assert sampled(0, 0.0) == {0}
    assert int(text_decoder.choose(logits, keys[0], 0.0, 0, 1.0)[0]) == 0
