"""Reads state dicts lazily; `safetensors_writer.py` writes them.

StateDict      keys with shapes and dtypes; a tensor is read only on request
open_files     safetensors (one file, shards with an index, a folder of them), .pt, .pth and .bin
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import math
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from tuna_jax.utils.file_content import hint
from tuna_jax.utils.safetensors_files import DTYPES
from tuna_jax.utils.text_files import read_json

INDEX_SUFFIX = ".index.json"
UNFINISHED = "unfinished_conversion.txt"
"""A folder with this file holds a part of what a conversion writes."""
_WRAPPERS = ("model", "state_dict")


class SourceError(ValueError):
    """A file that cannot be read as weights; the message names the file, the problem and a remedy."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """Metadata of a tensor: its shape, its dtype and its file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    file: str

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class StateDict:
    """Tensors by key; reading a tensor opens only its file.

    Attributes:
      entries: metadata of each key.
      reader: `(key, index) -> array` in the stored dtype; with an index, only that part along the first axis.
      metadata: of the file; empty for most files.
      part_reader: `(key, slices) -> array`, if the format allows to read only a part; slices have steps of 1.
    """

    entries: Mapping[str, Entry]
    reader: Callable[[str, int | None], np.ndarray]
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    part_reader: Callable[[str, tuple[slice, ...]], np.ndarray] | None = None

    def read(self, key: str, index: int | None = None) -> np.ndarray:
        """The tensor of a key, or its part `index` along the first axis."""
        return self.reader(key, index)

    def read_part(self, key: str, index: tuple[slice, ...]) -> np.ndarray:
        """A part of a tensor, by a slice for each axis; only its bytes are read if the format allows it."""
        if self.part_reader is None:
            return self.read(key)[index]
        return self.part_reader(key, index)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every key."""
        return {key: entry.shape for key, entry in self.entries.items()}

    def renamed(self, rename: Callable[[str], str]) -> StateDict:
        """The same tensors under other keys."""
        old = {rename(key): key for key in self.entries}
        entries = {key: self.entries[source] for key, source in old.items()}
        return StateDict(
            entries,
            lambda key, index: self.reader(old[key], index),
            self.metadata,
            lambda key, index: self.read_part(old[key], index),
        )


def merge(parts: Sequence[StateDict]) -> StateDict:
    """Merges several state dicts.

    Raises:
      SourceError: keys that are in two of them; the message lists all.
    """
    owner: dict[str, StateDict] = {}
    duplicates: list[str] = []
    for part in parts:
        for key, entry in part.entries.items():
            if key in owner:
                duplicates.append(f"{key} ({owner[key].entries[key].file} and {entry.file})")
            owner[key] = part
    if duplicates:
        raise SourceError(
            f"{len(duplicates)} tensors are in two sources; pass each component once:\n  "
            + "\n  ".join(duplicates)
        )
    entries = {key: part.entries[key] for key, part in owner.items()}
    metadata = {name: value for part in parts for name, value in part.metadata.items()}
    return StateDict(
        entries,
        lambda key, index: owner[key].reader(key, index),
        metadata,
        lambda key, index: owner[key].read_part(key, index),
    )


def open_files(source: str | Path) -> StateDict:
    """Opens weights without reading them.

    Args:
      source: a `.safetensors`, `.pt`, `.pth` or `.bin` file; an index (`*.index.json`); or a folder with an
        index, or with files of one of these kinds.

    Raises:
      SourceError: the source does not exist, a file is truncated or of an unknown format, a shard is missing, or a
        pickle holds other objects than tensors.
    """
    path = Path(source)
    if not path.exists():
        raise SourceError(f"{path} does not exist")
    if (path / UNFINISHED).exists():
        raise SourceError(
            f"{path} is what an interrupted conversion has left; run the same conversion again"
        )
    if path.is_dir():
        return _open_folder(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _open_index(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        return _open_pickle(path)
    raise SourceError(
        f"{path} is not a supported file of weights; supported are .safetensors, .pt, .pth, .bin, "
        f"an index ({INDEX_SUFFIX}), and a folder with one of them"
    )


def _open_folder(folder: Path) -> StateDict:
    indices = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
    if len(indices) > 1:
        names = ", ".join(path.name for path in indices)
        raise SourceError(f"{folder} has several indices ({names}); pass one of them")
    if indices:
        return _open_index(indices[0])
    for pattern in ("*.safetensors", "*.pt", "*.pth", "*.bin"):
        files = sorted(folder.glob(pattern))
        if files:
            return merge([open_files(path) for path in files])
    raise SourceError(f"{folder} has no .safetensors, .pt, .pth or .bin file, and no index")


def _open_index(path: Path) -> StateDict:
    try:
        weight_map = read_json(path)["weight_map"]
        if not all(isinstance(name, str) for name in weight_map.values()):
            raise TypeError("a name is not a text")
    except (KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{path} is not an index of shards: it has no 'weight_map'") from error
    except ValueError as error:
        raise SourceError(f"{path} is not an index of shards: {error}") from error
    shards = sorted(set(weight_map.values()))
    missing = [name for name in shards if not (path.parent / name).exists()]
    if missing:
        raise SourceError(
            f"{len(missing)} of the {len(shards)} shards in {path} do not exist: {', '.join(missing)}; "
            f"download them again"
        )
    whole = merge([open_files(path.parent / name) for name in shards])
    absent = sorted(set(weight_map) - set(whole.entries))
    if absent:
        raise SourceError(
            f"{len(absent)} tensors in {path} are in none of its shards:\n  " + "\n  ".join(absent)
        )
    return whole


def _open_safetensors(path: Path) -> StateDict:
    try:
        # `safe_open` checks that header, offsets and length of the file agree.
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        header = json.loads(_bytes_of(path, 8, int.from_bytes(_bytes_of(path, 0, 8), "little")))
        header.pop("__metadata__", None)
        entries = {
            key: Entry(tuple(part["shape"]), DTYPES[part["dtype"]], str(path))
            for key, part in header.items()
        }
    except SafetensorError as error:
        raise SourceError(
            f"{path} is truncated or not a safetensors file ({error}){hint(path) or '; download it again'}"
        ) from error
    except KeyError as error:
        raise SourceError(f"{path} has tensors of dtype {error}, which is not supported") from None
    begin = os.path.getsize(path) - max((p["data_offsets"][1] for p in header.values()), default=0)

    def read(key: str, index: int | None) -> np.ndarray:
        # Read rather than mapped: the pages of a mapped file count as memory of the process while it is open.
        entry = entries[key]
        shape = entry.shape if index is None else entry.shape[1:]
        tensor = np.empty(shape, entry.dtype)
        offset = begin + header[key]["data_offsets"][0] + (index or 0) * tensor.nbytes
        _read_into(path, tensor, offset)
        return tensor

    def read_part(key: str, index: tuple[slice, ...]) -> np.ndarray:
        entry = entries[key]
        return _read_part(path, begin + header[key]["data_offsets"][0], entry, index)

    return StateDict(entries, read, metadata, read_part)


def _read_part(path: Path, offset: int, entry: Entry, index: tuple[slice, ...]) -> np.ndarray:
    """Reads a part of a tensor that is stored from `offset` on, one contiguous run of bytes after the other."""
    bounds = [part.indices(size)[:2] for part, size in zip(index, entry.shape, strict=True)]
    tensor = np.empty([stop - start for start, stop in bounds], entry.dtype)
    if not tensor.size:
        return tensor
    # Axes behind the last one that is cut are whole, so a run covers that axis and all behind it.
    cut = [axis for axis, size in enumerate(entry.shape) if tensor.shape[axis] != size]
    axis = cut[-1] if cut else 0
    strides = [math.prod(entry.shape[i + 1 :]) * entry.dtype.itemsize for i in range(tensor.ndim)]
    first = sum(start * stride for (start, _), stride in zip(bounds, strides, strict=True))
    with open(path, "rb", buffering=0) as file:
        for lead in np.ndindex(*tensor.shape[:axis]):
            file.seek(offset + first + sum(i * s for i, s in zip(lead, strides, strict=False)))
            _fill(path, file, tensor[lead] if lead else tensor)  # `[()]` of a scalar is a copy.
    return tensor


def _bytes_of(path: Path, offset: int, count: int) -> bytes:
    data = np.empty(count, np.uint8)
    _read_into(path, data, offset)
    return data.tobytes()


def _read_into(path: Path, tensor: np.ndarray, offset: int) -> None:
    """Fills a contiguous array from a file; SourceError if the file ends before it is full."""
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        _fill(path, file, tensor)


def _fill(path: Path, file: FileIO, tensor: np.ndarray) -> None:
    """Fills a contiguous array from a file's position on."""
    view = tensor.reshape(-1).view(np.uint8).data
    while view:
        count = file.readinto(view)
        if not count:
            raise SourceError(f"{path} ended during a read; it may have been changed")
        view = view[count:]


def _open_pickle(path: Path) -> StateDict:
    try:
        import torch
    except ImportError as error:
        raise SourceError(
            f"{path} is a PyTorch pickle, which requires PyTorch: pip install 'tuna_jax[torch]', or convert it "
            f"to safetensors on another machine"
        ) from error
    try:
        # Only tensors and plain containers, so nothing in the file is executed; mapped rather than read.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = str(error).split("\n", 1)[0]
        raise SourceError(
            f"{path} cannot be read as tensors ({reason}); it is truncated, not a zip checkpoint of torch.save, "
            f"or has other objects, which are refused because loading them executes code{hint(path)}"
        ) from error
    for name in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping):
        raise SourceError(f"{path} has a {type(loaded).__name__}, not a state dict")
    others = [str(key) for key, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise SourceError(
            f"{path} has objects that are not tensors: {', '.join(others[:10])}; pass only the state dict, "
            f"directly or under {' or '.join(map(repr, _WRAPPERS))}"
        )
    numpy_of = {
        torch.bfloat16: (torch.uint16, np.dtype(ml_dtypes.bfloat16)),
        torch.float8_e4m3fn: (torch.uint8, np.dtype(ml_dtypes.float8_e4m3fn)),
        torch.float8_e5m2: (torch.uint8, np.dtype(ml_dtypes.float8_e5m2)),
    }

    def as_numpy(tensor: Any) -> np.ndarray:
        if tensor.dtype in numpy_of:
            bits, dtype = numpy_of[tensor.dtype]
            return tensor.contiguous().view(bits).numpy().view(dtype)
        return tensor.numpy()

    entries = {
        key: Entry(
            tuple(tensor.shape), as_numpy(tensor[:0] if tensor.ndim else tensor).dtype, str(path)
        )
        for key, tensor in loaded.items()
    }

    def read(key: str, index: int | None) -> np.ndarray:
        mapped = as_numpy(loaded[key] if index is None else loaded[key][index])
        tensor = np.array(mapped, order="C")
        _release_pages(mapped)
        return tensor

    return StateDict(entries, read)


def _release_pages(mapped: np.ndarray) -> None:
    """Releases the memory of a part of a mapped file; a later access reads it again."""
    if not sys.platform.startswith("linux") or not mapped.flags.c_contiguous:
        return
    first = (
        -(-mapped.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    )  # Whole pages within the tensor.
    count = (mapped.ctypes.data + mapped.nbytes) // mmap.PAGESIZE - first // mmap.PAGESIZE
    if count > 0:
        madvise = ctypes.CDLL(None).madvise
        madvise(ctypes.c_void_p(first), ctypes.c_size_t(count * mmap.PAGESIZE), mmap.MADV_DONTNEED)


def total_bytes(entries: Iterable[Entry]) -> int:
    """Total size of these tensors in bytes."""
    return sum(entry.nbytes for entry in entries)
