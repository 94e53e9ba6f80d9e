"""Arrays that a worker process allocates in shared memory, so that passing them to the run copies nothing."""

from __future__ import annotations

import math
import os
import uuid
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
from grain.multiprocessing import SharedMemoryArray, SharedMemoryArrayMetadata
from jaxtyping import Shaped

SHARED_BYTES = 1 << 16  # Smaller arrays are copied: a block of shared memory costs 0.1 ms.

_process = {"worker": False}


class _Owned(SharedMemoryArray):
    """An array that frees its memory, until Grain reads its metadata: then the memory belongs to the receiver.

    The memory's name begins with `prefix` of the run's process.
    """

    def __new__(cls, shape: tuple[int, ...], dtype: Any) -> SharedMemoryArray:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        name = f"{prefix(os.getppid())}{uuid.uuid4().hex[:12]}"
        array = cls.from_shared_memory(SharedMemory(name, create=True, size=size), shape, dtype)
        array.unlink_on_del()
        return array

    @property
    def metadata(self) -> SharedMemoryArrayMetadata:
        metadata = super().metadata
        self._unlink_on_del = False
        return metadata


def prefix(process: int) -> str:
    """The prefix of the names of shared memory for a process."""
    return f"tuna_jax_{process}_"


def this_is_a_worker() -> None:
    """Makes `zeros` allocate large arrays of this process in shared memory."""
    _process["worker"] = True


def zeros(shape: tuple[int, ...], dtype: Any) -> Shaped[np.ndarray, "*shape"]:
    """An array of zeros for a batch; a large one is in shared memory in a worker process."""
    if not _process["worker"] or np.dtype(dtype).itemsize * math.prod(shape) < SHARED_BYTES:
        return np.zeros(shape, dtype)
    return _Owned(shape, dtype)  # New shared memory is zero.
