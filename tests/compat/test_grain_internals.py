"""The names of Grain's experimental and private APIs that `compat/grain_internals.py` uses."""

import inspect
import time
from importlib import metadata
from multiprocessing.shared_memory import SharedMemory

import grain
import numpy as np
import pytest
from grain.multiprocessing import SharedMemoryArray

from tuna_jax.compat import grain_internals

KNOWN = f"written for grain {grain_internals.VERSION}; this is {metadata.version('grain')}"


def test_the_experimental_names_take_what_we_pass():
    options = inspect.signature(grain.experimental.DatasetOptions).parameters
    assert "min_shm_size" in options, KNOWN
    wrapped = list(inspect.signature(grain.experimental.WithOptionsIterDataset).parameters)
    assert wrapped[:2] == ["parent", "options"], KNOWN


def test_the_options_leave_the_elements_as_they_are():
    dataset = grain.MapDataset.range(4).to_iter_dataset()
    assert list(grain_internals.with_shared_memory_from(dataset, 64)) == [0, 1, 2, 3], KNOWN


def test_the_shared_array_has_the_methods_that_we_extend():
    assert list(inspect.signature(SharedMemoryArray.from_shared_memory).parameters) == [
        "shm", "shape", "dtype",
    ], KNOWN  # fmt: skip
    assert isinstance(inspect.getattr_static(SharedMemoryArray, "metadata"), property), KNOWN
    array = SharedMemoryArray((2,), np.float32)
    assert array._unlink_on_del is False, KNOWN
    array.unlink_on_del()
    assert array._unlink_on_del is True, KNOWN


def _exists(name: str) -> bool:
    try:
        SharedMemory(name).close()
    except FileNotFoundError:
        return False
    return True


@pytest.mark.parametrize("deletion", ["at once", "in a thread"])
def test_an_unsent_array_frees_its_memory_and_a_sent_one_does_not(deletion):
    if deletion == "in a thread":
        SharedMemoryArray.enable_async_del()  # What Grain does when it starts workers.
    kept = grain_internals.OwnedArray("tuna_jax_test_kept", (3,), np.float32)
    assert isinstance(kept, SharedMemoryArray) and not kept.any()
    del kept
    # Once a loader with workers has run in this process, Grain frees shared memory in a thread of its own.
    deadline = time.monotonic() + 30
    while _exists("tuna_jax_test_kept"):
        assert time.monotonic() < deadline, KNOWN
        time.sleep(0.01)
    sent = grain_internals.OwnedArray("tuna_jax_test_sent", (3,), np.float32)
    described = sent.metadata
    del sent
    received = SharedMemoryArray.from_metadata(described)
    received.unlink_on_del()
    assert received.shape == (3,), KNOWN
