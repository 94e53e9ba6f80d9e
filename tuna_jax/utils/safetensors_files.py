"""Whole safetensors files: read at once, and written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tuna_jax.utils import file_content
from tuna_jax.utils.atomic_io import atomic_file


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All tensors of a file, by name, and its metadata.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged or no safetensors file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except SafetensorError as error:
        hint = file_content.hint(Path(path))
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}{hint}") from error


def write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a file; its folder is created if necessary."""
    with atomic_file(path) as scratch:
        save_file(dict(tensors), scratch, metadata=dict(metadata))
