"""Seeds of random numbers: whole numbers of 64 bits, each with a key of its own."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import jax

LARGEST = 2**64 - 1
_LARGEST_INDEX = 2**32 - 1


def check(seed: Any, where: str = "seed") -> int:
    """The seed as an int.

    Raises:
      ValueError: it is not a whole number from 0 to 2**64 - 1; `where` names it.
    """
    return _whole(seed, LARGEST, where, "2**64 - 1")


def check_index(index: Any, where: str) -> int:
    """The index of a row as an int; ValueError unless it is a whole number from 0 to 2**32 - 1."""
    return _whole(index, _LARGEST_INDEX, where, "2**32 - 1")


def _whole(value: Any, largest: int, where: str, largest_text: str) -> int:
    try:
        whole = operator.index(value)
    except TypeError:
        whole = -1
    # bool is a subclass of int.
    if isinstance(value, (bool, np.bool_)) or not 0 <= whole <= largest:
        shown = repr(value) if abs(whole) < 10**40 else "a number of more than 40 digits"
        raise ValueError(
            f"{where} is {shown[:120]}; it must be a whole number from 0 to {largest_text}"
        )
    return whole


def key(seed: Any, where: str = "seed") -> jax.Array:
    """The PRNG key of a seed: different seeds have different keys.

    `jax.random.key` keeps only the lower 32 bits of a seed unless 64-bit types are enabled. The key is the one that it
    gives with them, so seeds below 2**32 have the key that it gives without them too.

    Raises:
      ValueError: as `check`.
    """
    import jax  # Commands check seeds before they start it.

    seed = check(seed, where)
    low = jax.random.key(seed & 0xFFFFFFFF)
    if seed >> 32 == 0:
        return low
    # threefry's key is (high, low), and rbg's is that twice.
    data = jax.random.key_data(low).at[..., ::2].set(np.uint32(seed >> 32))
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(low))
