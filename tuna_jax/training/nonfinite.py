"""What a run leaves behind when its losses stay not finite: the batch, for whoever looks for the reason."""

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
    """Too many updates in a row had a loss or gradient that was not finite."""


def keep_batch(
    workdir: str | Path, step: int, batch: Mapping[str, np.ndarray], told: Mapping[str, Any]
) -> Path:
    """Writes one process's part of the batch of a step to `WORKDIR/post_mortem/`, atomically.

    Args:
      workdir: the run's.
      step: the update that the batch was for.
      batch: its arrays; bfloat16 becomes float32, which holds it exactly, for tools that do not know it.
      told: JSON to keep beside them, such as the process and the log line.

    Returns:
      The safetensors file; the names are the batch's, the metadata has `step` and `told`.
    """
    folder = Path(workdir) / "post_mortem"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}_process_{told.get('process', 0)}.safetensors"
    arrays = {
        name: np.ascontiguousarray(
            array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array
        )
        for name, array in batch.items()
    }
    beside = path.with_suffix(".tmp")
    save_file(arrays, beside, metadata={"step": str(step), "told": json.dumps(dict(told))})
    os.replace(beside, path)
    return path
