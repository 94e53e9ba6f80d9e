"""Arrays that a worker process allocates in shared memory, so that passing them to the run copies nothing."""

from __future__ import annotations

import math
import os
import uuid
from typing import Any

import numpy as np
from jaxtyping import Shaped

from tuna_jax.compat.grain_internals import OwnedArray

SHARED_BYTES = 1 << 16  # Smaller arrays are copied: a block of shared memory costs 0.1 ms.

_process = {"worker": False}


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
    name = f"{prefix(os.getppid())}{uuid.uuid4().hex[:12]}"
    return OwnedArray(name, shape, dtype)  # New shared memory is zero.
