"""A trained model as safetensors with the run's settings, for inference.

Checkpoints are for resuming training: they hold the optimizer state and require a mesh. An export holds only the
parameters, float32 under their dotted names, and in its metadata the run's settings as JSON and its step. It is one
file, `model.safetensors`; a large model that several processes trained has one file per process, with an index
(`sharded_export.py`). The run of an adapter writes `adapter.safetensors` instead.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tuna_jax.utils import safetensors_files
from tuna_jax.utils.param_tree import flatten, unflatten

MODEL_FILE = "model.safetensors"
MODEL_INDEX = f"{MODEL_FILE}.index.json"
ADAPTER_FILE = "adapter.safetensors"
"""An adapter (`adapters/lora.py`): only what was trained, for the model that its run record names."""


RECORD_KEY = "run_record"
"""The key of a run's record (`inference/run_record.py`) in its settings."""
LOADED_DTYPE = "loaded_dtype"
"""Metadata: the dtype that parameters get when they are loaded, of a file that stores them in fewer bits."""


def exported(workdir: str | Path) -> Path | None:
    """The exported weights of a workdir: one file, the index of several, or an adapter; None if there are none."""
    names = (MODEL_FILE, MODEL_INDEX, ADAPTER_FILE)
    return next((p for name in names if (p := Path(workdir, name)).is_file()), None)


def export_model(
    path: str | Path, params: Any, settings: dict[str, Any], step: int, loaded_dtype: str = ""
) -> Path:
    """Writes `params` (nested dict of arrays) and the run's settings (JSON) to `path`, atomically.

    `loaded_dtype` is the dtype of the parameters once they are loaded; '' keeps the one that they are stored in.
    """
    path = Path(path)
    tensors = {name: np.asarray(jax.device_get(leaf)) for name, leaf in flatten(params).items()}
    metadata = {"settings": json.dumps(settings), "step": str(step)}
    if loaded_dtype:
        metadata[LOADED_DTYPE] = loaded_dtype
    safetensors_files.write(path, tensors, metadata)
    return path


def load_model(path: str | Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Reads an exported model: (params, the run's settings, step).

    Args:
      path: the file, the index of several, or a workdir with either.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, or was not written by `export_model`.
    """
    path = Path(path)
    path = (exported(path) or path / MODEL_FILE) if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(
            f"no trained model at {path}; `python -m tuna_jax.train` writes it when a run ends or is stopped"
        )
    tensors, metadata = safetensors_files.read(path)
    if "settings" not in metadata:
        raise ValueError(
            f"{path} has no settings in its metadata; it was not written by tuna_jax.train"
        )
    if dtype := metadata.get(LOADED_DTYPE):
        tensors = {name: array.astype(dtype) for name, array in tensors.items()}
    return unflatten(tensors), json.loads(metadata["settings"]), int(metadata["step"])
