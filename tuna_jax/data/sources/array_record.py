"""ArrayRecord files that `tuna-jax data convert` wrote, as a source of examples; the fastest to read at random."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader

from tuna_jax.data.invalid_examples import Fault, report_as_invalid
from tuna_jax.data.media.image import Size
from tuna_jax.data.sources.base import Example
from tuna_jax.data.sources.fields import FieldMap
from tuna_jax.data.sources.reader_pool import ReaderPool, close_reader
from tuna_jax.data.sources.records import NOT_READ, unpack
from tuna_jax.data.sources.rows import Shard, ShardedRows
from tuna_jax.data.sources.shard_digest import sampled_digest
from tuna_jax.data.sources.shards import files_of, shard_name
from tuna_jax.utils import buckets
from tuna_jax.utils.file_content import hint
from tuna_jax.utils.text_files import read_json

SUFFIXES = (".array_record", ".arrayrecord", ".array_records")
SETTINGS_FILE = "records.json"
# Without these, each reader would hold threads and megabytes for reading ahead.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


def open_array_record(path: str | os.PathLike[str]) -> Any:
    """A reader of a file.

    Raises:
        FileNotFoundError: there is none.
        Fault: it is cut or damaged (corrupt_shard); the mend is named.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(2, os.strerror(2), os.fspath(path))
    try:
        reader = ArrayRecordReader(os.fspath(path), _OPTIONS)
        if reader.ok():
            return reader
        reader.close()
        why = "it has no end"
    except RuntimeError as error:
        why = str(error).split("\n", 1)[0][:200]
    mend = hint(path) or "; write or download it again"
    raise Fault("corrupt_shard", f"{path} is cut or damaged ({why}){mend}")


def read_records(reader: Any, path: str | os.PathLike[str], numbers: list[int]) -> list[bytes]:
    """Records of a file by number; Fault (corrupt_shard) if they are damaged."""
    try:
        return reader.read(numbers)
    except (RuntimeError, IndexError, ValueError) as error:
        why = str(error).split("\n", 1)[0][:200]
        raise Fault(
            "corrupt_shard", f"{path} is damaged ({why}); write or download it again"
        ) from error


class ArrayRecordExamples(ShardedRows):
    """The examples of ArrayRecord files.

    Reading is safe from several threads.

    Args:
        source: a file, a folder, or a pattern (shards.py).
        fields: the key map.
        image_root: where names of files in rows begin; None takes the folder of the first file.

    Raises:
        FileNotFoundError: there is no file, or the conversion into the folder did not finish.
        ValueError: no file can be read.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        fields: FieldMap | None = None,
        image_root: str | os.PathLike[str] | None = None,
    ):
        files = files_of(os.fspath(source), SUFFIXES)
        _check_complete(Path(source))
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            shards = list(pool.map(_examine, files))
        root = buckets.folder(files[0].parent if image_root is None else image_root)
        super().__init__(os.fspath(source), shards, root, fields or FieldMap())
        self._pool: ReaderPool[Any] = ReaderPool(open_array_record, close_reader)

    def _records(self, index: int, both: bool) -> list[bytes]:
        shard, row = self.place(index)
        if self.shards[shard].broken:
            raise Fault("corrupt_shard", self.shards[shard].broken)
        path = self.shards[shard].path
        with self._pool.use(str(path)) as reader:
            return read_records(reader, path, [2 * row, 2 * row + 1] if both else [2 * row])

    def _read(self, shard: int, row: int) -> Mapping[str, Any]:
        header, blobs = self._records(int(self._begins[shard]) + row, both=True)
        return self._unpacked(shard, header, blobs)[0]

    def _unpacked(self, shard: int, header: bytes, blobs: bytes | None) -> Any:
        try:
            return unpack(header, blobs)
        except (ValueError, KeyError, TypeError) as error:
            raise Fault(
                "unknown_format",
                f"{self.shards[shard].path} was not written by `tuna-jax data convert` ({error}); a TFDS data set is "
                "named by the key tfds",
            ) from error

    def outline(self, index: int) -> Example:
        """An example for the scan: with its size, and without reading images and videos if that is stored."""
        with report_as_invalid(self.name, self.line(index)):
            (header,) = self._records(index, both=False)
            row, size = self._unpacked(self.place(index)[0], header, None)
            if size is None:
                return self[index]
            example = self._example(index, row, lambda key, value: NOT_READ)
            return example if example.size else dataclasses.replace(example, size=Size(*size))


def _check_complete(folder: Path) -> None:
    """Raises FileNotFoundError if shards of a folder are missing."""
    if not (folder / SETTINGS_FILE).is_file():
        return
    shards = read_json(folder / SETTINGS_FILE)["shards"]
    names = [f"{shard_name(shard, shards)}.json" for shard in range(shards)]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {shards} shards are missing in {folder}, the first {missing[0]}; run the same "
            "`tuna-jax data convert` again, it continues where it stopped"
        )


def _examine(path: Path) -> Shard:
    try:
        reader = open_array_record(path)
    except Fault as error:
        return Shard(path, 1, str(path.stat().st_size), error.reason)
    rows = reader.num_records() // 2
    reader.close()
    return Shard(path, rows, sampled_digest(path))
