"""Arrays that a worker process makes in shared memory from the start: handing them to the run then copies nothing."""

from __future__ import annotations

import math
import os
import uuid
from typing import Any

import numpy as np
from jaxtyping import Shaped

from tuna_jax.compat.grain_internals import OwnedArray

SHARED_BYTES = (
    1 << 16
)  # arrays from this size on go through shared memory; a block of it costs 0.1 ms

_here = {"worker": False}


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
    name = f"{prefix(os.getppid())}{uuid.uuid4().hex[:12]}"
    return OwnedArray(name, shape, dtype)  # fresh shared memory is zero
