"""Keeps the batch of a non-finite step, so that the cause can be examined."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file


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
    folder = Path(workdir) / "post_mortem"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}_process_{details.get('process', 0)}.safetensors"
    arrays = {
        name: np.ascontiguousarray(
            array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array
        )
        for name, array in batch.items()
    }
    scratch = path.with_suffix(".tmp")
    save_file(arrays, scratch, metadata={"step": str(step), "details": json.dumps(dict(details))})
    os.replace(scratch, path)
    return path
