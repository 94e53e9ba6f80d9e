"""Text in slots: each answer is that of `text_decoder.generate`, whatever is next to it and was there before it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax.config import preset
from tuna_jax.inference import batching
from tuna_jax.inference.generation import prefix_cache, text_decoder, text_slots
from tuna_jax.models import tuna

CONFIG = preset("tiny")
PARAMS = jax.tree.map(
    lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape),
    tuna.init(CONFIG, jax.random.key(0)),
)
PROMPTS = ([1, 2, 3, 4, 5, 6], [1, 7, 8, 6], [5, 4, 3], [9, 9, 1, 2, 2])
OPTIONS = (
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.5, "top_p": 0.8, "top_k": 50},
)
MOST = 7


def _prefix(rows):
    tokens = np.zeros((len(rows), 8), np.int32)
    for row, prompt in enumerate(rows):
        tokens[row, : len(PROMPTS[prompt])] = PROMPTS[prompt]
    lengths = np.asarray([len(PROMPTS[prompt]) for prompt in rows], np.int32)
    return prefix_cache.text_prefix(tokens, lengths)


@functools.cache
def _alone(prompt, eos=-1):
    keys = batching.keys([(3, prompt)], 1)
    return text_decoder.generate(
        CONFIG, PARAMS, _prefix([prompt]), keys, eos=eos, max_new_tokens=MOST, **OPTIONS[prompt]
    )


def _options(rows):
    defaults = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
    given = [defaults | OPTIONS[row] for row in rows]
    return text_slots.RowOptions(
        np.stack([batching.key_data(3, row) for row in rows]),
        np.asarray([row["temperature"] for row in given], np.float32),
        np.asarray([row["top_k"] for row in given], np.int32),
        np.asarray([row["top_p"] for row in given], np.float32),
    )


def _insert(slots, prompts, rows):
    rows = np.asarray(rows, np.int32)
    return text_slots.insert(CONFIG, PARAMS, slots, _prefix(prompts), rows, _options(prompts))


def _decode(slots, occupied, most, eos=-1, keys=None):
    rows = len(occupied)
    return text_slots.decode(
        CONFIG,
        PARAMS,
        slots,
        np.asarray(occupied),
        np.int32(most),
        np.int32(eos),
        rows=rows,
        keys=keys,
        chunk=4,
    )


def test_answers_that_come_and_go_are_those_of_each_alone() -> None:
    slots = text_slots.new(CONFIG, 4, 16)
    texts: dict[int, list[int]] = {0: [], 1: [], 2: [], 3: []}

    def decode(slots, at, most):
        slots, decoded = _decode(slots, [slot in at for slot in range(4)], most)
        assert int(decoded.count) == most and bool(decoded.finite.all())
        for slot, prompt in at.items():
            texts[prompt] += decoded.tokens[slot, :most].tolist()
        return slots

    slots = decode(_insert(slots, [0, 0], [2, 2]), {2: 0}, 3)  # A batch filled by a copy.
    slots = decode(_insert(slots, [1, 3], [0, 1]), {2: 0, 0: 1, 1: 3}, 4)
    slots = decode(_insert(slots, [2, 2], [2, 2]), {0: 1, 1: 3, 2: 2}, 3)  # Slot 2 is taken again.
    slots = decode(slots, {2: 2}, 4)
    for prompt in (0, 1, 2, 3):
        assert texts[prompt] == _alone(prompt).tokens[0].tolist()


def test_a_call_ends_with_the_first_answer_that_ends() -> None:
    free = _alone(0).tokens[0].tolist()
    eos = free[2]
    slots = _insert(text_slots.new(CONFIG, 2, 16), [0, 1], [0, 1])
    slots, decoded = _decode(slots, [True, True], 4, eos)
    assert int(decoded.count) == free.index(eos) + 1
    _, decoded = _decode(slots, [False, False], 4)
    assert int(decoded.count) == 0


def test_the_first_rows_alone_decode_the_same() -> None:
    slots = _insert(text_slots.new(CONFIG, 4, 16), [0, 1], [0, 1])
    slots, decoded = _decode(slots, [True, True], 3, keys=12)
    first = decoded.tokens[0, :3].tolist()
    slots, decoded = _decode(slots, [True, True, False, False], 4, keys=13)
    assert first + decoded.tokens[0, :4].tolist() == _alone(0).tokens[0].tolist()


def test_nothing_of_a_slots_last_answer_remains() -> None:
    slots = text_slots.new(CONFIG, 2, 16)
    slots = jax.tree.map(
        lambda x: jnp.full_like(x, jnp.nan) if x.dtype == jnp.float32 else x, slots
    )
    slots = _insert(slots, [0, 1], [0, 1])
    _, decoded = _decode(slots, [True, True], 4)
    assert bool(decoded.finite.all())
    assert decoded.tokens[0, :4].tolist() == _alone(0).tokens[0, :4].tolist()


def test_logits_that_are_not_finite_are_reported_of_their_row() -> None:
    slots = _insert(text_slots.new(CONFIG, 2, 16), [0, 1], [0, 1])
    slots = slots._replace(logits=slots.logits.at[1].set(jnp.nan))
    _, decoded = _decode(slots, [True, True], 2)
    assert decoded.finite.tolist() == [True, False]


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**32, 2**64 - 1])
def test_key_data_is_that_of_keys(seed) -> None:
    wanted = jax.random.key_data(batching.keys([(seed, 5)], 1))[0]
    np.testing.assert_array_equal(batching.key_data(seed, 5), wanted)
