"""Background preparation of items by Grain."""

import time

import pytest

from tuna_jax.data.prefetch import prefetch


def test_items_come_in_order_with_several_threads():
    def make(index):
        time.sleep(0.02 if index % 2 == 0 else 0)
        return index

    assert list(prefetch(make, 3, 9, depth=3, threads=3)) == [3, 4, 5, 6, 7, 8]


def test_a_resumed_run_continues_with_the_same_items():
    whole = list(prefetch(lambda index: index**2, 0, 20, depth=4))
    assert list(prefetch(lambda index: index**2, 13, 20, depth=4)) == whole[13:]


def test_only_a_few_are_prepared_ahead():
    prepared = []
    items = prefetch(lambda index: prepared.append(index) or index, 0, 100, depth=2)
    assert next(items) == 0
    time.sleep(0.1)
    assert max(prepared) <= 2


def test_depth_beyond_the_end_is_harmless():
    assert list(prefetch(lambda index: index, 0, 2, depth=10)) == [0, 1]
    assert list(prefetch(lambda index: index, 5, 5)) == []


def test_an_error_is_raised_when_its_item_is_due():
    def make(index):
        if index == 2:
            raise RuntimeError("no image 2")
        return index

    items = prefetch(make, 0, 5)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(RuntimeError, match="no image 2"):
        next(items)
