"""What this package uses of Grain's experimental and private APIs.

Written against grain 0.2.18. Grain has no public way to choose which arrays its workers pass through shared memory
(`grain.experimental.DatasetOptions`), nor an array that frees its shared memory if it is never sent.
"""

from __future__ import annotations

import math
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import grain
import numpy as np
from grain.multiprocessing import SharedMemoryArray, SharedMemoryArrayMetadata

VERSION = "0.2.18"
"""The version of grain that this module was written against."""


def with_shared_memory_from(dataset: grain.IterDataset[Any], size: int) -> grain.IterDataset[Any]:
    """The data set whose workers pass arrays of at least `size` bytes through shared memory, and copy smaller ones."""
    options = grain.experimental.DatasetOptions(min_shm_size=size)
    return grain.experimental.WithOptionsIterDataset(dataset, options)


class OwnedArray(SharedMemoryArray):
    """An array in shared memory that frees the memory when it is deleted, unless Grain has sent it to another process.

    Grain asks for the metadata of an array in order to send it; from then on the receiver owns the memory.

    Args:
      name: of the shared memory.
      shape, dtype: of the array. Its content is whatever the memory holds; fresh memory is zero.
    """

    def __new__(cls, name: str, shape: tuple[int, ...], dtype: Any) -> SharedMemoryArray:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        array = cls.from_shared_memory(SharedMemory(name, create=True, size=size), shape, dtype)
        array.unlink_on_del()
        return array

    @property
    def metadata(self) -> SharedMemoryArrayMetadata:
        described = super().metadata
        self._unlink_on_del = False
        return described
