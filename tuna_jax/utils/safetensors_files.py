"""Whole safetensors files: read at once, and written whole or not at all; and the header of the format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from tuna_jax.utils import file_content
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.text_files import read_json

# In the order of the library, which sorts tensors by it.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I16": np.dtype(np.int16),
    "U16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32),
    "U32": np.dtype(np.uint32),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
}
"""The dtypes of the format by their words in it."""
WORDS = {dtype: word for word, dtype in DTYPES.items()}


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
    """Writes a file with the tensors in the order of `safetensors.numpy.save_file`; its folder is created if necessary.

    That function sets the size of the file first, which a mounted bucket refuses; this one only appends.
    """
    rank = {dtype: number for number, dtype in enumerate(DTYPES.values())}
    names = sorted(tensors, key=lambda name: (-rank[tensors[name].dtype], name))
    arrays = {name: np.ascontiguousarray(tensors[name]) for name in names}
    entries = {
        name: (WORDS[array.dtype], tensors[name].shape, array.nbytes)
        for name, array in arrays.items()
    }
    with atomic_file(path) as scratch, scratch.open("wb") as file:
        file.write(header(entries, metadata))
        for array in arrays.values():
            file.write(array.reshape(-1).view(np.uint8).data)
