"""The index of a scan: one file that all processes map, made of chunks that processes and hosts write at the same time.

    scan-HASH.safetensors             the whole: height, width, media and text of each example, 7 or 8 bytes as a rule
    scan-HASH-part-N.safetensors      the same of the first N examples, while the whole is not there
    scan-HASH.chunks/00000-of-00012.safetensors     a chunk that is scanned; the folder goes when the whole is there
    scan-HASH-VERSION.json            what another look at files that were missing has changed

HASH is of what the index belongs to: the identity of the source, the task, the vocabulary, and the version of this
format. A chunk's content follows only from its examples, so that it does not matter who scans it, or how often.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tuna_jax.data.invalid_examples import InvalidExample
from tuna_jax.data.mixture.metadata import ExampleMetadata, ExampleNumbers, Result
from tuna_jax.data.sources.base import ExampleSource
from tuna_jax.data.sources.stored_index import (
    Column,
    MappedArrays,
    open_file,
    path_of,
    smallest_type,
    write_columns,
    write_file,
    writing,
)
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.text_files import read_json

VERSION = 3
"""Of the stored metadata; raise it when `text_tokens` or the metadata change."""
_LEAST_ROWS, _MOST_ROWS = 1 << 10, 1 << 14  # Of a chunk.
_MOST_CHUNKS = 1 << 11  # As far as the rows allow.
_MOST_KEYS = 200  # Names of ignored keys that are kept, of rows whose keys are data.
_COLUMNS = ExampleNumbers._fields


def rows_per_chunk(rows: int) -> int:
    """The examples of a chunk, a power of 2: few chunks of a large source, and little work lost by a killed host."""
    wanted = -(-rows // _MOST_CHUNKS)
    return min(max(1 << (wanted - 1).bit_length(), _LEAST_ROWS), _MOST_ROWS)


@dataclasses.dataclass(frozen=True)
class ScanIndex:
    """The index of a source's scan in a folder.

    Args:
        folder: of indexes.
        about: what the index belongs to.
        examples: the source.
        chunk_rows: examples of a chunk.
    """

    folder: Path
    about: Mapping[str, Any]
    examples: ExampleSource
    chunk_rows: int

    @property
    def path(self) -> Path:
        """The file of the whole."""
        return path_of(self.folder, "scan", self.about)

    @property
    def chunks_folder(self) -> Path:
        """The folder of chunks that are scanned."""
        return self.path.with_suffix(".chunks")

    def read(self, rows: int) -> ExampleMetadata | None:
        """The metadata of the first `rows` examples; None if their index is not there.

        Raises:
            ValueError: an index is damaged, or belongs to other data; it is named.
        """
        found = open_file(self.path, self.about)
        if found is None and rows < len(self.examples):
            found = open_file(self._part(rows), self._about_part(rows))
        return None if found is None else self._metadata(found, rows)

    def _part(self, rows: int) -> Path:
        return self.path.with_name(f"{self.path.stem}-part-{rows}.safetensors")

    def _about_part(self, rows: int) -> dict[str, Any]:
        return {**self.about, "part": rows}

    def _metadata(self, found: MappedArrays, rows: int) -> ExampleMetadata:
        height, width, media, text = (found[name][:rows] for name in _COLUMNS)
        invalid = {
            index: InvalidExample(kind, self.examples.name, self.examples.line(index), reason)
            for index, kind, reason in json.loads(found["invalid"].tobytes())
            if index < rows
        }
        ignored = {key: (count, first) for key, (count, first) in found.about["ignored"].items()}
        return ExampleMetadata(height, width, media, text, invalid, ignored, self.path.stem)

    # ---- chunks ----------------------------------------------------------------------------------

    def chunks(self, rows: int) -> dict[str, range]:
        """The chunks that the first `rows` examples take, by name: the numbers of their examples."""
        count = -(-len(self.examples) // self.chunk_rows)
        whole = range(len(self.examples))
        return {
            f"{number:05d}-of-{count:05d}": whole[begin : begin + self.chunk_rows]
            for number, begin in enumerate(range(0, rows, self.chunk_rows))
        }

    def finished(self) -> set[str]:
        """The names of the chunks that are scanned."""
        try:
            files = os.listdir(self.chunks_folder)
        except FileNotFoundError:
            return set()
        return {
            name.removesuffix(".safetensors")
            for name in files
            if name.endswith(".safetensors") and not name.startswith(".")
        }

    def write_chunk(self, name: str, numbers: range, scanned: ExampleMetadata) -> None:
        """Keeps what was scanned of a chunk; the keys of `scanned` are numbers of examples in the source."""
        about = self._about_chunk(numbers)
        write_file(self._chunk(name), about, _arrays(scanned), {"ignored": dict(scanned.ignored)})

    def _chunk(self, name: str) -> Path:
        return self.chunks_folder / f"{name}.safetensors"

    def _about_chunk(self, numbers: range) -> dict[str, Any]:
        return {**self.about, "begin": numbers.start, "end": numbers.stop}

    def merge(self, rows: int) -> ExampleMetadata | None:
        """Makes the index of the first `rows` examples of their chunks; None if another process was faster."""
        is_whole = rows == len(self.examples)
        path = self.path if is_whole else self._part(rows)
        about = dict(self.about) if is_whole else self._about_part(rows)
        chunks = self.chunks(rows)

        def opened() -> Iterator[tuple[range, MappedArrays]]:
            for name, numbers in chunks.items():
                found = open_file(self._chunk(name), self._about_chunk(numbers))
                if found is None:
                    raise FileNotFoundError(self._chunk(name))
                yield numbers, found

        try:
            most, invalid, ignored = self._totals(opened())
            kept = [entry for entry in invalid if entry[0] < rows]
            columns = {"invalid": Column.of(_as_bytes(kept))}
            for name in _COLUMNS:

                def blocks(name: str = name) -> Iterator[np.ndarray]:
                    for numbers, found in opened():
                        yield found[name][: rows - numbers.start]

                columns[name] = Column(np.dtype(smallest_type(most[name])), (rows,), blocks)
            write_columns(path, about, columns, {"ignored": ignored})
        except FileNotFoundError:
            return None
        return self.read(rows)

    def remove_parts(self) -> None:
        """Removes chunks, claims, parts and what killed processes left of the whole, if the whole is there.

        Whoever has mapped a file keeps it; who is just writing the whole again finds it (`merge`).
        """
        if self.path.is_file():
            for pattern in (f"{self.path.stem}-part-*.safetensors", f".{self.path.stem}*"):
                for left in self.folder.glob(pattern):
                    left.unlink(missing_ok=True)
            shutil.rmtree(self.chunks_folder, ignore_errors=True)

    @staticmethod
    def _totals(
        chunks: Iterator[tuple[range, MappedArrays]],
    ) -> tuple[dict[str, int], list[Any], dict[str, tuple[int, int]]]:
        """The largest number of each column, all invalid examples, and the ignored keys."""
        most = dict.fromkeys(_COLUMNS, 0)
        invalid: list[Any] = []
        ignored: dict[str, tuple[int, int]] = {}
        for _, found in chunks:
            for name in _COLUMNS:
                most[name] = max(most[name], int(found[name].max(initial=0)))
            invalid += json.loads(found["invalid"].tobytes())
            for key, (count, first) in found.about["ignored"].items():
                add_ignored(ignored, key, first, count)
        return most, invalid, ignored

    def write(self, metadata: ExampleMetadata) -> None:
        """Keeps the metadata of all examples."""
        write_file(self.path, self.about, _arrays(metadata), {"ignored": dict(metadata.ignored)})

    # ---- another look ----------------------------------------------------------------------------

    def write_changes(self, changes: Mapping[int, Result]) -> str:
        """Keeps what another look at some examples changed, next to the index; returns its version."""
        text = json.dumps(
            [
                [index, result.kind, result.reason]
                if isinstance(result, InvalidExample)
                else [index, *map(int, result)]
                for index, result in changes.items()
            ]
        )
        version = hashlib.sha256(text.encode()).hexdigest()[:12]
        path = changes_file(self.path, version)
        with writing(self.folder), atomic_file(path) as scratch:
            scratch.write_text(text, encoding="utf-8")
        return version

    def changes(self, version: str, old: Path | None = None) -> dict[int, Result] | None:
        """What another look had changed; None if that is not kept any more.

        Args:
            version: of the changes.
            old: the file of an index of an earlier version of this package, next to which they may be.
        """
        places = [changes_file(path, version) for path in (self.path, old) if path is not None]
        kept = next((place for place in places if place.is_file()), None)
        if kept is None:
            return None
        examples = self.examples
        return {
            index: InvalidExample(values[0], examples.name, examples.line(index), values[1])
            if isinstance(values[0], str)
            else ExampleNumbers(*values)
            for index, *values in read_json(kept)
        }


def changes_file(path: Path, version: str) -> Path:
    """The file of changes next to an index."""
    return path.with_name(f"{path.stem}-{version}.json")


def add_ignored(ignored: dict[str, tuple[int, int]], key: str, first: int, count: int = 1) -> None:
    """Counts an ignored key; the first keys are kept, up to a limit."""
    if key in ignored or len(ignored) < _MOST_KEYS:
        before, first = ignored.get(key, (0, first))
        ignored[key] = before + count, first


def read_old(path: Path, examples: ExampleSource) -> ExampleMetadata | None:
    """The metadata that an earlier version of this package kept as an archive; None if there are none."""
    if not path.is_file():
        return None
    with np.load(path) as kept:
        numbers, listed = kept["numbers"], json.loads(kept["bad"].tobytes())
        ignored = json.loads(kept["ignored"].tobytes())
    invalid = {
        i: InvalidExample(kind, examples.name, examples.line(i), reason)
        for i, kind, reason in listed
    }
    height, width, media, text = numbers
    ignored = {key: (count, first) for key, (count, first) in ignored.items()}
    return ExampleMetadata(height, width, media, text, invalid, ignored)


def _arrays(metadata: ExampleMetadata) -> dict[str, np.ndarray]:
    listed = [[index, row.kind, row.reason] for index, row in metadata.invalid.items()]
    arrays = {"invalid": _as_bytes(listed)}
    for name in _COLUMNS:
        column = getattr(metadata, name)
        arrays[name] = column.astype(smallest_type(int(column.max(initial=0))))
    return arrays


def _as_bytes(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)
