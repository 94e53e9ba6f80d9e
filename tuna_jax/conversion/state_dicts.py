"""State dicts on disk: lazily read, whoever wrote them, and written as a stream.

    StateDict      keys with shapes and dtypes, known at once; a tensor is read when it is asked for
    open_files     safetensors (one file, shards with an index, a folder of them), .pt and .pth
    Writer         safetensors whose tensors come one by one, and in pieces

The library's own writer wants all tensors in memory at once, so the file is laid out here: eight bytes with
the header's length, the header as JSON, the tensors' bytes (github.com/huggingface/safetensors, README,
"Format"). Everything is written in a folder beside the output, which gets its name when it is complete.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_INDEX_SUFFIX = ".index.json"
_WRAPPERS = ("model", "state_dict")


class SourceError(ValueError):
    """A file that cannot be read as weights; the message names it, what is wrong and what would mend it."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is known of a tensor before it is read: its shape, its dtype and the file it lies in."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    file: str

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class StateDict:
    """Tensors by key; reading one touches its file alone.

    Attributes:
      entries: what each key is.
      reader: key -> array in the stored dtype. A second argument takes one index of the first axis alone.
      metadata: the file's own remarks; empty for most.
    """

    entries: Mapping[str, Entry]
    reader: Callable[[str, int | None], np.ndarray]
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def read(self, key: str, index: int | None = None) -> np.ndarray:
        """The tensor of a key, or its part `index` along the first axis."""
        return self.reader(key, index)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every key."""
        return {key: entry.shape for key, entry in self.entries.items()}

    def renamed(self, rename: Callable[[str], str]) -> StateDict:
        """The same tensors under other keys."""
        old = {rename(key): key for key in self.entries}
        entries = {key: self.entries[source] for key, source in old.items()}
        return StateDict(entries, lambda key, index: self.reader(old[key], index), self.metadata)


def merge(parts: Sequence[StateDict]) -> StateDict:
    """One state dict of several; a key that two of them have is an error that lists all such keys."""
    owner: dict[str, StateDict] = {}
    twice: list[str] = []
    for part in parts:
        for key, entry in part.entries.items():
            if key in owner:
                twice.append(f"{key} ({owner[key].entries[key].file} and {entry.file})")
            owner[key] = part
    if twice:
        raise SourceError(
            f"{len(twice)} tensors stand in two sources; give each component once:\n  "
            + "\n  ".join(twice)
        )
    entries = {key: part.entries[key] for key, part in owner.items()}
    metadata = {name: value for part in parts for name, value in part.metadata.items()}
    return StateDict(entries, lambda key, index: owner[key].reader(key, index), metadata)


def open_files(source: str | Path) -> StateDict:
    """Opens weights without reading them.

    Args:
      source: a `.safetensors`, `.pt`, `.pth` or `.bin` file; an index (`*.index.json`); or a folder with an
        index, or with files of one of these kinds.

    Raises:
      SourceError: nothing there, a truncated or foreign file, a shard that is missing, a pickle that holds
        more than tensors.
    """
    path = Path(source)
    if not path.exists():
        raise SourceError(f"{path} does not exist")
    if path.is_dir():
        return _open_folder(path)
    if path.name.endswith(_INDEX_SUFFIX):
        return _open_index(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        return _open_pickle(path)
    raise SourceError(
        f"{path} is no kind of file that holds weights here; give .safetensors, .pt, .pth, .bin, "
        f"an index ({_INDEX_SUFFIX}) or a folder with one of them"
    )


def _open_folder(folder: Path) -> StateDict:
    indices = sorted(folder.glob(f"*{_INDEX_SUFFIX}"))
    if len(indices) > 1:
        names = ", ".join(path.name for path in indices)
        raise SourceError(f"{folder} has several indices ({names}); give the one that is meant")
    if indices:
        return _open_index(indices[0])
    for pattern in ("*.safetensors", "*.pt", "*.pth", "*.bin"):
        files = sorted(folder.glob(pattern))
        if files:
            return merge([open_files(path) for path in files])
    raise SourceError(f"{folder} holds no .safetensors, .pt, .pth or .bin file, and no index")


def _open_index(path: Path) -> StateDict:
    try:
        weight_map = json.loads(path.read_text())["weight_map"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise SourceError(f"{path} is not an index of shards: no 'weight_map' in it") from error
    shards = sorted(set(weight_map.values()))
    lost = [name for name in shards if not (path.parent / name).exists()]
    if lost:
        raise SourceError(
            f"{len(lost)} of the {len(shards)} shards that {path} names are not there: {', '.join(lost)}; "
            f"fetch them again"
        )
    whole = merge([open_files(path.parent / name) for name in shards])
    absent = sorted(set(weight_map) - set(whole.entries))
    if absent:
        raise SourceError(
            f"{len(absent)} tensors that {path} names are in none of its shards:\n  "
            + "\n  ".join(absent)
        )
    return whole


def _open_safetensors(path: Path) -> StateDict:
    try:
        # It checks that header, offsets and the file's length agree.
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        header = json.loads(_bytes_of(path, 8, int.from_bytes(_bytes_of(path, 0, 8), "little")))
        header.pop("__metadata__", None)
        entries = {
            key: Entry(tuple(part["shape"]), _DTYPES[part["dtype"]], str(path))
            for key, part in header.items()
        }
    except SafetensorError as error:
        raise SourceError(
            f"{path} is truncated or not a safetensors file ({error}); fetch it again"
        ) from error
    except KeyError as error:
        raise SourceError(
            f"{path} holds tensors of dtype {error}, which is not known here"
        ) from None
    begin = os.path.getsize(path) - max((p["data_offsets"][1] for p in header.values()), default=0)

    def read(key: str, index: int | None) -> np.ndarray:
        # Read, not mapped: the pages of a mapped file count as memory of this process for as long as it is open.
        entry = entries[key]
        shape = entry.shape if index is None else entry.shape[1:]
        tensor = np.empty(shape, entry.dtype)
        offset = begin + header[key]["data_offsets"][0] + (index or 0) * tensor.nbytes
        _read_into(path, tensor, offset)
        return tensor

    return StateDict(entries, read, metadata)


def _bytes_of(path: Path, offset: int, count: int) -> bytes:
    data = np.empty(count, np.uint8)
    _read_into(path, data, offset)
    return data.tobytes()


def _read_into(path: Path, tensor: np.ndarray, offset: int) -> None:
    """Fills a contiguous array from a file; SourceError if the file ends before it is full."""
    view = tensor.reshape(-1).view(np.uint8).data
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        while view:
            count = file.readinto(view)
            if not count:
                raise SourceError(f"{path} ended while it was read; has it been changed since?")
            view = view[count:]


def _open_pickle(path: Path) -> StateDict:
    try:
        import torch
    except ImportError as error:
        raise SourceError(
            f"{path} is a PyTorch pickle, which only PyTorch reads: pip install 'tuna_jax[torch]', or "
            f"convert it to safetensors where PyTorch is"
        ) from error
    try:
        # Tensors and plain containers alone: nothing in the file is executed. Mapped, not read.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = str(error).split("\n", 1)[0]
        raise SourceError(
            f"{path} cannot be read as tensors alone ({reason}); it is truncated, not a zip checkpoint of "
            f"torch.save, or holds other objects, which are refused because loading them runs their code"
        ) from error
    for name in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
    if not isinstance(loaded, Mapping):
        raise SourceError(f"{path} holds a {type(loaded).__name__}, not a state dict")
    others = [str(key) for key, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise SourceError(
            f"{path} holds things that are no tensors beside its tensors: {', '.join(others[:10])}; give the "
            f"state dict alone, bare or under {' or '.join(map(repr, _WRAPPERS))}"
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
        _forget_pages(mapped)
        return tensor

    return StateDict(entries, read)


def _forget_pages(mapped: np.ndarray) -> None:
    """Gives back the memory that holds a part of a mapped file; it would be read again if asked for."""
    if not sys.platform.startswith("linux") or not mapped.flags.c_contiguous:
        return
    first = -(-mapped.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages within the tensor
    count = (mapped.ctypes.data + mapped.nbytes) // mmap.PAGESIZE - first // mmap.PAGESIZE
    if count > 0:
        madvise = ctypes.CDLL(None).madvise
        madvise(ctypes.c_void_p(first), ctypes.c_size_t(count * mmap.PAGESIZE), mmap.MADV_DONTNEED)


class Writer:
    """Writes safetensors whose tensors come one by one, or in pieces along their first axis.

    Use it as a context: on leaving, the output gets its final name if all went well and every byte was
    written, and nothing is left of it otherwise.

    Args:
      path: a `.safetensors` file, or else a folder of shards with an index.
      entries: every tensor's shape and dtype, in the order in which they shall lie.
      metadata: remarks for the header.
      shard_bytes: largest shard in a folder.
      name: how files in a folder begin.
      extra: other files of the folder: name to text.

    Raises:
      FileExistsError: there is something under that name already.
      OSError: the disk cannot hold it; told before the first byte.
    """

    def __init__(
        self,
        path: str | Path,
        entries: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
        *,
        metadata: Mapping[str, str] | None = None,
        shard_bytes: int = 5 * 10**9,
        name: str = "model",
        extra: Mapping[str, str] | None = None,
    ):
        self.path = Path(path)
        self._metadata, self._extra = dict(metadata or {}), dict(extra or {})
        self._entries = {key: Entry(shape, dtype, "") for key, (shape, dtype) in entries.items()}
        self._single = self.path.suffix == ".safetensors"
        if self.path.exists() and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise FileExistsError(
                f"{self.path} exists already and is left as it is; choose another output, or move it away"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        needed = sum(entry.nbytes for entry in self._entries.values())
        free = shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise OSError(
                f"{self.path} needs {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB left; "
                f"make room, or write elsewhere"
            )
        self._name = name
        self._files = self._shards(shard_bytes)
        self._where: dict[str, tuple[int, int]] = {}
        self._missing = {key: entry.nbytes for key, entry in self._entries.items()}
        self._open: list[int] = []
        self._folder = Path(tempfile.mkdtemp(prefix=f".{self.path.name}-", dir=self.path.parent))
        try:
            self._lay_out()
        except BaseException:
            self._clear()
            raise

    def _shards(self, limit: int) -> dict[str, list[str]]:
        """File name -> its keys, in order."""
        groups: list[list[str]] = [[]]
        size = 0
        for key, entry in self._entries.items():
            if groups[-1] and not self._single and size + entry.nbytes > limit:
                groups.append([])
                size = 0
            groups[-1].append(key)
            size += entry.nbytes
        if self._single:
            return {self.path.name: groups[0]}
        if len(groups) == 1:
            return {f"{self._name}.safetensors": groups[0]}
        count = len(groups)
        return {
            f"{self._name}-{i:05d}-of-{count:05d}.safetensors": keys
            for i, keys in enumerate(groups, 1)
        }

    def _lay_out(self) -> None:
        for number, (name, keys) in enumerate(self._files.items()):
            header: dict[str, Any] = {"__metadata__": self._metadata} if self._metadata else {}
            offset = 0
            for key in keys:
                entry = self._entries[key]
                header[key] = {
                    "dtype": _NAMES[entry.dtype],
                    "shape": list(entry.shape),
                    "data_offsets": [offset, offset + entry.nbytes],
                }
                offset += entry.nbytes
            text = json.dumps(header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            begin = 8 + len(text)
            position = begin
            for key in keys:
                self._where[key] = number, position
                position += self._entries[key].nbytes
            file = os.open(self._folder / name, os.O_RDWR | os.O_CREAT, 0o644)
            self._open.append(file)
            if begin + offset:
                os.posix_fallocate(file, 0, begin + offset)  # a full disk is told here
            _write_all(file, len(text).to_bytes(8, "little") + text, 0)

    def write(self, key: str, tensor: np.ndarray, index: int | None = None) -> None:
        """Writes a tensor, or its part `index` along the first axis; every part once.

        Raises:
          ValueError: another shape or dtype than was announced.
        """
        entry = self._entries[key]
        shape = entry.shape if index is None else entry.shape[1:]
        if tensor.shape != shape or tensor.dtype != entry.dtype:
            raise ValueError(
                f"{key}: {tensor.dtype} {list(tensor.shape)} came, {entry.dtype} {list(shape)} was announced"
            )
        file, position = self._where[key]
        position += 0 if index is None else index * tensor.nbytes
        data = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
        _write_all(self._open[file], data.data, position)
        self._missing[key] -= tensor.nbytes

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._clear()

    def _finish(self) -> None:
        unwritten = [key for key, missing in self._missing.items() if missing]
        if unwritten:
            raise ValueError(f"{len(unwritten)} tensors were not written: {', '.join(unwritten)}")
        for file in self._open:
            os.fsync(file)
        if self._single:
            os.replace(self._folder / self.path.name, self.path)
            return
        if len(self._files) > 1:
            weight_map = {key: name for name, keys in self._files.items() for key in keys}
            total = sum(entry.nbytes for entry in self._entries.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            self._extra[f"{self._name}.safetensors{_INDEX_SUFFIX}"] = json.dumps(index, indent=2)
        for name, text in self._extra.items():
            (self._folder / name).write_text(text)
        if self.path.exists():
            self.path.rmdir()  # it is empty: that was checked
        self._folder.chmod(0o755)
        os.rename(self._folder, self.path)

    def _clear(self) -> None:
        for file in self._open:
            os.close(file)
        self._open = []
        shutil.rmtree(self._folder, ignore_errors=True)


def _write_all(file: int, data: bytes | memoryview, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, position)
        view, position = view[written:], position + written


def total_bytes(entries: Iterable[Entry]) -> int:
    """Size of these tensors together."""
    return sum(entry.nbytes for entry in entries)
