"""Arrays in shared memory: who owns them, and that none is left."""

import gc
import os
import sys
import time
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from grain.multiprocessing import SharedMemoryArray

from tuna_jax.data import loader, shared_memory
from tuna_jax.data.media.image import Size
from tuna_jax.data.mixture.mixture import Mixture, batches
from tuna_jax.data.mixture.stream import ExampleStream
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.text.tokenizer import Tokenizer

SHARED = Path("/dev/shm")
# Worker processes cannot import this file by its name.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="only Linux lists its shared memory")


@pytest.fixture
def worker(monkeypatch):
    """This process counts as a worker."""
    monkeypatch.setitem(shared_memory._process, "worker", True)


def test_the_main_process_and_small_arrays_need_no_shared_memory(monkeypatch) -> None:
    large = (shared_memory.SHARED_BYTES,)
    assert type(shared_memory.zeros(large, np.uint8)) is np.ndarray
    monkeypatch.setitem(shared_memory._process, "worker", True)
    assert type(shared_memory.zeros((100,), np.float32)) is np.ndarray
    array = shared_memory.zeros(large, np.uint8)
    assert isinstance(array, SharedMemoryArray) and not array.any()


def soon(condition):
    """Whether `condition` becomes true: Grain frees memory in a thread once this process has read from workers."""
    for _ in range(100):
        if condition():
            return True
        time.sleep(0.1)
    return False


def test_memory_is_freed_with_the_array_unless_it_was_handed_over(worker) -> None:
    kept = shared_memory.zeros((2, shared_memory.SHARED_BYTES), np.uint8)
    lost = shared_memory.zeros((2, shared_memory.SHARED_BYTES), np.uint8)
    kept[1] = 7
    described = kept.metadata
    names = [described.name, lost.shm.name]
    assert all((SHARED / name).exists() for name in names)
    del kept, lost
    gc.collect()
    assert soon(lambda: not (SHARED / names[1]).exists())
    assert (SHARED / names[0]).exists()
    received = SharedMemoryArray.from_metadata(described)
    received.unlink_on_del()
    assert (received[1] == 7).all() and not received[0].any()
    del received
    gc.collect()
    assert soon(lambda: not (SHARED / names[0]).exists())


def test_batches_of_a_worker_are_made_there_and_nothing_is_left(files) -> None:
    names = [files.image(f"{i}.png", 160, 160, shade=3 * i) for i in range(12)]
    path = files.manifest("m.jsonl", [{"image": name, "caption": name} for name in names])
    stream = ExampleStream(
        name="s",
        task="t2i",
        source=Manifest(path),
        weight=1.0,
        rows=2,
        lengths=(256,),
        sizes=(Size(160, 160),),
    )
    mixed = Mixture([stream], Tokenizer(), directory=files.root / "cache")

    def ours():
        return list(SHARED.glob(f"{shared_memory.prefix(os.getpid())}*"))

    running = loader.iterate(batches(mixed), workers=1, ahead=4)
    for n in range(5):
        batch = next(running)
        assert isinstance(batch["pixels"], SharedMemoryArray)
        np.testing.assert_array_equal(batch["pixels"], mixed[n]["pixels"])
    assert ours()  # of batches that are ready, and of this one
    running.close()
    del batch
    gc.collect()
    assert soon(lambda: not ours())
