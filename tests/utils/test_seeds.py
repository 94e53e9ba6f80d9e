"""Seeds are 64 bits: all different, out of range an error, and those below 2**32 as they always were."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_jax.inference import batching
from tuna_jax.utils import seeds

BOUNDED = settings(derandomize=True, max_examples=60, deadline=None)


def data(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


@pytest.mark.parametrize("seed", [0, 1, 7, 2**31, 2**32 - 1])
def test_seeds_of_32_bits_keep_their_key(seed):
    assert data(seeds.key(seed)) == data(jax.random.key(seed))


def test_the_seeds_of_the_report_differ():
    """1, 2**32 + 1 and 2**64 - 2**32 + 1, which is -(2**32 - 1) in two's complement, gave one picture."""
    keys = [data(seeds.key(seed)) for seed in (1, 2**32 + 1, 2**63, 2**63 + 1, 2**64 - 2**32 + 1)]
    assert len(set(keys)) == 5


@BOUNDED
@given(st.integers(0, seeds.LARGEST), st.integers(0, seeds.LARGEST))
def test_different_seeds_have_different_keys(first, second):
    assert (data(seeds.key(first)) == data(seeds.key(second))) == (first == second)


def test_keys_are_those_of_64_bit_types():
    with jax.enable_x64(True):
        expected = [data(jax.random.key(seed)) for seed in (2**32 + 1, 2**62 + 3)]
    assert [data(seeds.key(seed)) for seed in (2**32 + 1, 2**62 + 3)] == expected


def test_a_key_can_be_made_while_tracing():
    assert data(jax.jit(lambda: seeds.key(2**40 + 5))()) == data(seeds.key(2**40 + 5))


@pytest.mark.parametrize(
    "seed", [-1, -(2**32) + 1, 2**64, True, 1.0, float("nan"), "1", None, [1], b"1"]
)
def test_others_are_named_errors(seed):
    with pytest.raises(ValueError, match=r"^config\.seed is .*2\*\*64 - 1"):
        seeds.key(seed, "config.seed")


def test_rows_have_seeds_of_64_bits_too():
    keys = batching.keys([2**32 + 1, (1, 0), (2**63, 5), np.uint64(2**64 - 1)], 4)
    assert len({data(key) for key in keys}) == 4
    assert data(batching.keys(2**32 + 1, 2)[0]) == data(keys[0])
    for wrong in ([2**64], [(1, -1)], [(1, 2**32)], [(1, 2, 3)], ["a"]):
        with pytest.raises(ValueError, match=r"seed\[0\] is"):
            batching.keys(wrong, 1)
