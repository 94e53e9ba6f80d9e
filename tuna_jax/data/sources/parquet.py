"""Parquet files as a source of examples: data sets of Hugging Face, BAGEL's shards, tables of one's own.

Only the columns that examples are made of are read. An image or a video is a column of encoded bytes, of Hugging Face's
{bytes, path}, of file names, or of lists of these. A row is read with its row group, of which the last ones stay in
memory: shuffled reading decodes a group per row, so that groups of hundreds of images are slow; `tuna-jax data convert`
makes ArrayRecord of them.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import hashlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tuna_jax.data.invalid_examples import Fault, report_as_invalid
from tuna_jax.data.sources.base import Example
from tuna_jax.data.sources.fields import MEDIA, FieldMap
from tuna_jax.data.sources.reader_pool import ReaderPool, close_reader
from tuna_jax.data.sources.records import NOT_READ
from tuna_jax.data.sources.rows import Shard, ShardedRows
from tuna_jax.data.sources.shards import files_of
from tuna_jax.utils import buckets
from tuna_jax.utils.file_content import hint
from tuna_jax.utils.regular_files import is_machine_fault

SUFFIXES = (".parquet", ".pq")
_CACHE = 256 << 20  # Bytes of row groups that a process keeps.


def import_pyarrow() -> Any:
    """The package `pyarrow.parquet`; ImportError names the extra that has it."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("parquet files require pyarrow: pip install 'tuna_jax[data]'") from error
    return pyarrow.parquet


class ParquetExamples(ShardedRows):
    """The rows of Parquet files.

    Reading is safe from several threads.

    Args:
        source: a file, a folder, or a pattern (shards.py).
        fields: the key map; its values are columns, such as 'image' or 'image.bytes'.
        image_root: where names of files in rows begin; None takes the folder of the first file.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: no file can be read, or a column is missing; file, column and the columns that exist are named.
        ImportError: pyarrow is not installed.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        fields: FieldMap | None = None,
        image_root: str | os.PathLike[str] | None = None,
    ):
        import_pyarrow()
        fields = fields or FieldMap()
        files = files_of(os.fspath(source), SUFFIXES)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            examined = list(pool.map(_examine, files))
        root = buckets.folder(files[0].parent if image_root is None else image_root)
        super().__init__(os.fspath(source), [shard for shard, _, _ in examined], root, fields)
        self._groups = [np.cumsum([0, *groups]) for _, groups, _ in examined]
        columns = [names for _, _, names in examined if names]
        self._columns = fields.columns(columns[0])
        self._ignored = tuple(name for name in columns[0] if name not in self._columns)
        for shard, _, names in examined:
            missing = [name for name in self._columns if names and name not in names]
            if missing:
                raise ValueError(
                    f"{shard.path} has no column {missing[0]!r}, which {examined[0][0].path.name} has; its columns are "
                    f"{', '.join(names)}. Give files of other columns a stream of their own"
                )
        self._pool: ReaderPool[Any] = ReaderPool(_open, close_reader)
        self._cache = _RowGroups()

    def ignored(self) -> tuple[str, ...]:
        """Columns that no example uses."""
        return self._ignored

    def group_rows(self) -> int:
        """The rows of the largest row group."""
        return max(int(np.diff(groups).max()) for groups in self._groups if len(groups) > 1)

    def _read(self, shard: int, row: int) -> Mapping[str, Any]:
        return self._row(shard, row, tuple(self._columns))

    def _row(self, shard: int, row: int, columns: tuple[str, ...]) -> Mapping[str, Any]:
        group = int(np.searchsorted(self._groups[shard], row, side="right")) - 1
        load = functools.partial(self._load, shard, group, columns)
        table = self._cache.get((shard, group, columns), load)
        return table.slice(row - int(self._groups[shard][group]), 1).to_pylist()[0]

    def _load(self, shard: int, group: int, columns: tuple[str, ...]) -> Any:
        path = self.shards[shard].path
        try:
            with self._pool.use(str(path)) as (reader, lock), lock:
                return reader.read_row_group(group, columns=list(columns), use_threads=False)
        except Exception as error:
            if is_machine_fault(error) or isinstance(error, FileNotFoundError):
                raise
            raise Fault(
                "corrupt_shard",
                f"{path}, row group {group} is damaged ({_first_line(error)}); download the file again",
            ) from error

    def outline(self, index: int) -> Example:
        """An example for the scan: if its row says its size, without reading images and videos."""
        plain = self._columns_without_media
        if plain is None:
            return self[index]
        with report_as_invalid(self.name, self.line(index)):
            shard, row = self.place(index)
            if self.shards[shard].broken:
                raise Fault("corrupt_shard", self.shards[shard].broken)
            media = [name for name in self._columns if name not in plain]
            values = dict.fromkeys(media, NOT_READ) | dict(self._row(shard, row, plain))
            return self._example(index, values, lambda key, value: NOT_READ)

    @functools.cached_property
    def _columns_without_media(self) -> tuple[str, ...] | None:
        """The columns to read for the scan; None if that needs the images and videos."""
        if not {"width", "height"} <= set(self.fields.declares) or self.fields.preset == "bagel":
            return None
        paths = {
            self.fields.fields.get(key, key).split(".")[0] for key in (*MEDIA, "images", "videos")
        }
        with self._pool.use(str(self._first_readable())) as (reader, _):
            schema = reader.schema_arrow
        media = [name for name in self._columns if name in paths]
        if any("list" in str(schema.field(name).type) for name in media):
            return None  # How many there are is in the column.
        return tuple(name for name in self._columns if name not in media)

    def _first_readable(self) -> Path:
        return next(shard.path for shard in self.shards if not shard.broken)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_cache": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._cache = _RowGroups()


class _RowGroups:
    """The last row groups that were read, up to `_CACHE` bytes; threads wait for one that another is reading."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[Any, concurrent.futures.Future] = (
            collections.OrderedDict()
        )

    def get(self, key: Any, load: Any) -> Any:
        with self._lock:
            future, mine = self._kept.get(key), False
            if future is None:
                future, mine = concurrent.futures.Future(), True
                self._kept[key] = future
            self._kept.move_to_end(key)
        if mine:
            try:
                future.set_result(load())
            except BaseException as error:
                future.set_exception(error)
                with self._lock:
                    self._kept.pop(key, None)
            self._shrink()
        return future.result()

    def _shrink(self) -> None:
        with self._lock:
            done = [(k, f.result().nbytes) for k, f in self._kept.items() if f.done()]
            total = sum(size for _, size in done)
            for key, size in done[:-1]:
                if total <= _CACHE:
                    break
                del self._kept[key]
                total -= size


def _open(path: str) -> tuple[Any, threading.Lock]:
    return _Closing((import_pyarrow().ParquetFile(path, memory_map=False), threading.Lock()))


class _Closing(tuple):
    """(reader, its lock), which closes the reader."""

    def close(self) -> None:
        self[0].close()


def _examine(path: Path) -> tuple[Shard, list[int], list[str]]:
    """A file's shard, the rows of its row groups, and its columns."""
    try:
        with import_pyarrow().ParquetFile(path) as file:
            metadata = file.metadata
            groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            columns = list(file.schema_arrow.names)
    except Exception as error:
        if is_machine_fault(error) or isinstance(error, (FileNotFoundError, PermissionError)):
            raise
        broken = (
            f"{path} is cut or damaged ({_first_line(error)}){hint(path) or '; download it again'}"
        )
        return Shard(path, 1, str(path.stat().st_size), broken), [], []
    return Shard(path, sum(groups), _footer_digest(path)), groups, columns


def _footer_digest(path: Path) -> str:
    """A hash of the file's size and footer, which has the places, sizes and statistics of all columns."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(size - 8)
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(size - 8 - length, 0))
        return hashlib.sha256(f"{size} ".encode() + file.read()).hexdigest()[:32]


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:200]
