"""What sources have in common whose examples are rows of files: the key map, media, and shards that cannot be read."""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tuna_jax.data.invalid_examples import Fault, report_as_invalid
from tuna_jax.data.media.image import Medium
from tuna_jax.data.sources.base import Example
from tuna_jax.data.sources.fields import MEDIA, FieldMap, declare
from tuna_jax.data.sources.jsonl import make_example, named_medium
from tuna_jax.utils.buckets import BucketFile, absolute


def medium_of(root: Path | BucketFile, key: str, value: Any) -> Medium:
    """An image or a video of a row: encoded bytes, pixels, {bytes, path} of Hugging Face, a file's name, a data URI.

    Raises:
        Fault: the value is none of these.
    """
    if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():
        value = value.get("bytes") or value.get("path")
    if isinstance(value, (bytes, bytearray, memoryview)):
        if not len(value):
            raise Fault("corrupt_image", f"{key} has no bytes")
        return bytes(value)
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        return value
    return named_medium(root, key, value)


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of a source.

    Attributes:
        path: the file.
        rows: its number of examples; 1 if it cannot be read, an invalid one that names it.
        digest: changes when its content does.
        broken: why it cannot be read; '' if it can.
    """

    path: Path
    rows: int
    digest: str
    broken: str = ""


class ShardedRows(abc.ABC):
    """The examples of several files by number, in the files' order.

    A file that cannot be read is one invalid example, whose reason names the file and the mend.

    Args:
        name: as the user wrote it.
        shards: the files.
        root: where names of files in rows begin.
        fields: the key map.

    Raises:
        ValueError: there is no example, or no file can be read.
    """

    def __init__(
        self, name: str, shards: Sequence[Shard], root: Path | BucketFile, fields: FieldMap
    ):
        self.name, self.shards, self.root, self.fields = name, tuple(shards), root, fields
        self._begins = np.concatenate([[0], np.cumsum([shard.rows for shard in shards])])
        broken = [shard for shard in shards if shard.broken]
        if len(broken) == len(shards):
            raise ValueError(f"{name}: no file can be read, the first: {broken[0].broken}")
        if not int(self._begins[-1]):
            raise ValueError(f"{name} has no examples")

    @property
    def location(self) -> Path:
        """The folder of its first file, for indexes that are kept with the data."""
        return self.shards[0].path.parent

    @property
    def identity(self) -> str:
        """Changes when a file, the key map or the root of names does."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(
                f"{shard.path.name} {shard.rows} {shard.digest}\n".encode("utf-8", "replace")
            )
        return f"{digest.hexdigest()} {absolute(self.root)} {self.fields.identity}".strip()

    def __len__(self) -> int:
        return int(self._begins[-1])

    def line(self, index: int) -> int:
        """The example's number, counted from 1."""
        return index + 1

    def place(self, index: int) -> tuple[int, int]:
        """(shard, row in it) of an example."""
        shard = int(np.searchsorted(self._begins, index, side="right")) - 1
        return shard, index - int(self._begins[shard])

    def row(self, index: int) -> Mapping[str, Any]:
        """The row of an example as it is in its file.

        Raises:
            IndexError: there is no such example.
            Fault: its file, or the row, cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {self.name}, which has {len(self)}")
        shard, row = self.place(index)
        if self.shards[shard].broken:
            raise Fault("corrupt_shard", self.shards[shard].broken)
        return self._read(shard, row)

    @abc.abstractmethod
    def _read(self, shard: int, row: int) -> Mapping[str, Any]:
        """A row of a shard."""

    def ignored(self) -> tuple[str, ...]:
        """Columns that no example uses."""
        return ()

    def __getitem__(self, index: int) -> Example:
        """An example; raises InvalidExample if it cannot be used."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {self.name}, which has {len(self)}")
        with report_as_invalid(self.name, self.line(index)):
            return self._example(index, self.row(index), functools.partial(medium_of, self.root))

    def _example(
        self, index: int, row: Mapping[str, Any], medium: Callable[[str, Any], Medium]
    ) -> Example:
        """A row as an example; its media are what `medium` makes of keys and values."""
        entry = self.fields(row, index)
        example = make_example(entry, medium, self.name, self.line(index))
        if columns := self.ignored():
            ignored = tuple(sorted({*example.ignored, *columns}))
            example = dataclasses.replace(example, ignored=ignored)
        return declare(example, self.fields.declared(row)) if self.fields.declares else example

    def content(self, index: int) -> bytes:
        """An example's row as JSON, with the keys of the formats; its images and videos by name only."""
        entry = self.fields(self.row(index), index)
        return json.dumps(_without_media(entry), ensure_ascii=False).encode()


def _without_media(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry whose media are names, as many as there are."""

    def name(key: str, value: Any) -> str:
        return value if isinstance(value, str) and not value.startswith("data:") else key

    plain = {}
    for key, value in entry.items():
        if key in (*MEDIA, "images", "videos"):
            listed = isinstance(value, (list, tuple))
            plain[key] = [name(key, item) for item in value] if listed else name(key, value)
        elif not isinstance(value, (bytes, bytearray)):
            plain[key] = value
    return plain
