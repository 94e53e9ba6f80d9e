"""Arrays that a worker process makes in shared memory from the start: handing them to the run then copies nothing."""

from __future__ import annotations

import math
import os
import uuid
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
from grain.multiprocessing import SharedMemoryArray, SharedMemoryArrayMetadata
from jaxtyping import Shaped

SHARED_BYTES = (
    1 << 16
)  # arrays from this size on go through shared memory; a block of it costs 0.1 ms

_here = {"worker": False}


class _Owned(SharedMemoryArray):
    """Its memory goes with it, until Grain has asked for the metadata: from then on it is the receiver's.

    The memory's name begins with `prefix` of the run's process.
    """

    def __new__(cls, shape: tuple[int, ...], dtype: Any) -> SharedMemoryArray:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        name = f"{prefix(os.getppid())}{uuid.uuid4().hex[:12]}"
        made = cls.from_shared_memory(SharedMemory(name, create=True, size=size), shape, dtype)
        made.unlink_on_del()
        return made

    @property
    def metadata(self) -> SharedMemoryArrayMetadata:
        described = super().metadata
        self._unlink_on_del = False
        return described


def prefix(process: int) -> str:
    """What names of memory that is meant for this process begin with."""
    return f"tuna_jax_{process}_"


def this_is_a_worker() -> None:
    """From now on `zeros` makes large arrays of this process in shared memory."""
    _here["worker"] = True


def zeros(shape: tuple[int, ...], dtype: Any) -> Shaped[np.ndarray, "*shape"]:
    """An array of zeros for a batch; in a worker process a large one lies in shared memory."""
    if not _here["worker"] or np.dtype(dtype).itemsize * math.prod(shape) < SHARED_BYTES:
        return np.zeros(shape, dtype)
    return _Owned(shape, dtype)  # fresh shared memory is zero
