"""Whole safetensors files: read at once, and written whole or not at all; and the header of the format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tuna_jax.utils import file_content
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.text_files import read_json


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All tensors of a file, or of the files that an index names, by name; and the metadata, of the last one.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged or no safetensors file.
    """
    path = Path(path)
    if path.suffix == ".json":
        tensors, metadata = {}, {}
        for name in sorted(set(read_json(path)["weight_map"].values())):
            part, metadata = read(path.parent / name)
            tensors |= part
        return tensors, metadata
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except SafetensorError as error:
        hint = file_content.hint(path)
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}{hint}") from error


def header(
    tensors: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: Mapping[str, str]
) -> bytes:
    """The beginning of a file, before the bytes of its tensors (github.com/huggingface/safetensors, README, "Format").

    Args:
      tensors: by name, in the order of the file: dtype in the format's words, shape, and size in bytes.
      metadata: of the file.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape, size) in tensors.items():
        entries[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a file; its folder is created if necessary."""
    with atomic_file(path) as scratch:
        save_file(dict(tensors), scratch, metadata=dict(metadata))
