"""Indexes of data that are kept in files: arrays that all processes of a host share, because they are mapped.

An index is a file of safetensors: arrays, and a text that says what they belong to. It is found by a hash of that text,
so data that changed has another index. `MappedArrays` reads one without copying it; a worker process that gets one by
pickle maps the same file, so the operating system keeps one copy per host.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tuna_jax.data.sources.shard_digest import sampled_digest
from tuna_jax.utils.atomic_io import atomic_file, cache_directory
from tuna_jax.utils.safetensors_files import WORDS, header

WITH_DATA = "with_data"
FOLDER = ".tuna_jax"
_TYPES = {
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "U64": np.uint64,
    "I32": np.int32,
    "I64": np.int64,
}


def index_folder(
    index: str | os.PathLike[str] | None,
    data: Path | None,
    directory: str | os.PathLike[str] | None = None,
) -> Path:
    """Where indexes of a file or folder are kept.

    Args:
        index: 'with_data' is a folder `.tuna_jax` next to the data, another text a folder; None or '' the cache folder.
        data: the file or the folder; None of a source that is not in files, whose indexes are in the cache folder.
        directory: the cache folder, see `cache_directory`.
    """
    if index == WITH_DATA and data is not None:
        return (data if data.is_dir() else data.parent) / FOLDER
    if index and index != WITH_DATA:
        return Path(index).expanduser()
    return cache_directory(directory) / "indexes"


def stamp(path: str | os.PathLike[str], samples: int = 16) -> dict[str, Any]:
    """What a file is recognised by without reading it whole: its name, size, time, and parts of its content."""
    known = os.stat(path)
    return {
        "name": os.path.basename(path),
        "size": known.st_size,
        "time": known.st_mtime_ns,
        "content": sampled_digest(path, samples),
    }


class MappedArrays:
    """The arrays of an index, mapped into memory; pickled by the file's name.

    Args:
        path: the file.

    Attributes:
        about: what the arrays belong to, as it was given to `write`.

    Raises:
        ValueError: the file is damaged; it is named.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                entries = json.loads(file.read(length))
                end = file.seek(0, 2)
            begin = 8 + length
            self.about: dict[str, Any] = json.loads(entries.pop("__metadata__")["about"])
            self._arrays = {name: self._map(entry, begin, end) for name, entry in entries.items()}
        except (ValueError, KeyError, TypeError, UnicodeDecodeError, OverflowError) as error:
            raise ValueError(
                f"the index {self.path} is damaged ({type(error).__name__}); remove it, and it is written again"
            ) from error

    def _map(self, entry: Mapping[str, Any], begin: int, end: int) -> np.ndarray:
        first, last = entry["data_offsets"]
        kind, shape = np.dtype(_TYPES[entry["dtype"]]), tuple(entry["shape"])
        if begin + last > end:
            raise ValueError("cut")
        if first == last:
            return np.zeros(shape, kind)
        mapped = np.memmap(self.path, kind, "r", begin + first, shape)
        return mapped.view(np.ndarray)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    def read(self) -> None:
        """Reads all arrays, so that their pages are in memory."""
        for array in self._arrays.values():
            array.max(initial=0)

    @property
    def bytes(self) -> int:
        """Of the file."""
        return self.path.stat().st_size


class MappedSlice:
    """A range of a mapped array that is pickled by the file's name, unlike an array.

    Args:
        arrays: the index.
        name: of an array of one dimension.
        begin, end: of the range.
    """

    def __init__(self, arrays: MappedArrays, name: str, begin: int, end: int):
        self._arguments = (arrays, name, begin, end)
        self._array = arrays[name][begin:end]

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: int | slice) -> Any:
        return self._array[index]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments


def path_of(folder: Path, kind: str, about: Mapping[str, Any]) -> Path:
    """The file of an index, which its kind and a hash of what it belongs to name."""
    text = json.dumps(about, sort_keys=True)
    return folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"


def find(folder: Path, kind: str, about: Mapping[str, Any]) -> MappedArrays | None:
    """The index of a kind that belongs to `about`; None if there is none.

    Raises:
        ValueError: the file is damaged, or belongs to other data (it was copied there); it is named.
    """
    return open_file(path_of(folder, kind, about), about)


def open_file(path: Path, about: Mapping[str, Any]) -> MappedArrays | None:
    """The index in a file; None if there is none. Raises as `find`."""
    if not path.is_file():
        return None
    found = MappedArrays(path)
    if any(found.about.get(key) != value for key, value in json.loads(json.dumps(about)).items()):
        raise ValueError(
            f"the index {path} belongs to other data ({_short(found.about)}, and this is {_short(about)}); "
            "remove it, and it is written again"
        )
    return found


def write(
    folder: Path,
    kind: str,
    about: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    more: Mapping[str, Any] | None = None,
) -> MappedArrays:
    """Writes an index atomically, and opens it.

    Args:
        folder: is made if it does not exist.
        kind: the beginning of its name.
        about: what it belongs to.
        arrays: by name; whole numbers.
        more: further values for `MappedArrays.about`.

    Raises:
        OSError: the folder cannot be written.
    """
    return write_file(path_of(folder, kind, about), about, arrays, more)


def write_file(
    path: Path,
    about: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    more: Mapping[str, Any] | None = None,
) -> MappedArrays:
    """Writes an index into a file atomically, and opens it; see `write`."""
    return write_columns(
        path, about, {name: Column.of(array) for name, array in arrays.items()}, more
    )


class Column(NamedTuple):
    """An array that is written in blocks, so that it need not be in memory.

    Attributes:
        dtype: of whole numbers.
        shape: of the array.
        blocks: makes its blocks in their order.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[np.ndarray]]

    @classmethod
    def of(cls, array: np.ndarray) -> Column:
        """A column of one block."""
        return cls(array.dtype, array.shape, lambda: [array])


def write_columns(
    path: Path,
    about: Mapping[str, Any],
    columns: Mapping[str, Column],
    more: Mapping[str, Any] | None = None,
) -> MappedArrays:
    """Writes an index block by block into a file atomically, and opens it; see `write`.

    The file is only appended to, as a mounted bucket requires.

    Raises:
        OSError: the folder cannot be written; the setting that names another one is named.
    """
    text = json.dumps({**about, **(more or {})})
    # The widest first, so that all are aligned.
    names = sorted(columns, key=lambda name: (-np.dtype(columns[name].dtype).itemsize, name))
    entries = {}
    for name in names:
        dtype, shape, _ = columns[name]
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        entries[name] = (WORDS[np.dtype(dtype)], shape, size)
    with writing(path.parent), atomic_file(path) as scratch, scratch.open("wb") as file:
        file.write(header(entries, {"about": text}))
        for name in names:
            for block in columns[name].blocks():
                array = np.ascontiguousarray(block, columns[name].dtype)
                file.write(array.reshape(-1).view(np.uint8).data)
    return MappedArrays(path)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Names a folder of indexes that cannot be written, and the mend.

    Raises:
        PermissionError: in place of the system's error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise PermissionError(
            errno.EACCES,
            "the folder of indexes cannot be written; name another one (config.data.index, or --index)",
            str(folder),
        ) from error


def smallest_type(most: int) -> type:
    """The type of unsigned numbers up to `most` with the fewest bytes."""
    return next(kind for kind in (np.uint8, np.uint16, np.uint32) if most <= np.iinfo(kind).max)


def _short(about: Mapping[str, Any]) -> str:
    text = json.dumps(about)
    return text if len(text) < 120 else f"{text[:117]}..."
