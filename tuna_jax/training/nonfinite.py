"""Keeps the batch of a non-finite step, so that the cause can be examined."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tuna_jax.utils import safetensors_files


class NotFiniteError(RuntimeError):
    """Too many consecutive updates had a loss or gradient that was not finite."""


def keep_batch(
    workdir: str | Path, step: int, batch: Mapping[str, np.ndarray], details: Mapping[str, Any]
) -> Path:
    """Writes one process's part of the batch of a step to `WORKDIR/post_mortem/`, atomically.

    Args:
      workdir: folder of the run.
      step: the step of the batch.
      batch: its arrays; bfloat16 is written as float32, which represents it exactly, for tools without bfloat16.
      details: JSON for the metadata, such as the process index and the log line.

    Returns:
      The safetensors file with the arrays of the batch; its metadata has `step` and `details`.
    """
    name = f"step_{step:08d}_process_{details.get('process', 0)}.safetensors"
    path = Path(workdir) / "post_mortem" / name
    arrays = {
        name: np.ascontiguousarray(
            array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array
        )
        for name, array in batch.items()
    }
    metadata = {"step": str(step), "details": json.dumps(dict(details))}
    safetensors_files.write(path, arrays, metadata)
    return path
