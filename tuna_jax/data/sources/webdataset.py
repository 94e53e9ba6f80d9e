"""WebDataset tars as a source of examples, read at random: each tar's headers are read once, and kept as an index.

The members of a sample are the keys of its row by their suffixes:

    jpg, png, webp, ...        the image; 0.jpg, 1.jpg, ... are several in their order
    mp4, webm, mov, ...        the video
    txt, caption               the caption
    json                       further keys: conversations, caption, width, ...
    raw_image.png, KEY.png     the key's image or video; raw_image.0.png, raw_image.1.png, ... are several
    KEY.txt                    the key's text

A member takes precedence over a key of the same name in the JSON.
"""

from __future__ import annotations

import concurrent.futures
import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tuna_jax.data.invalid_examples import Fault
from tuna_jax.data.sources.fields import KEYS, MEDIA, FieldMap
from tuna_jax.data.sources.reader_pool import ReaderPool, open_descriptor
from tuna_jax.data.sources.rows import Shard, ShardedRows
from tuna_jax.data.sources.shards import files_of
from tuna_jax.data.sources.stored_index import MappedArrays, find, index_folder, stamp, write
from tuna_jax.data.sources.tar_index import BLOCK, NotATar, TarIndex, index_tar, sample_name
from tuna_jax.utils import buckets
from tuna_jax.utils.text_files import parse_json

SUFFIXES = (".tar",)
IMAGES = frozenset(
    [
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "png",
        "webp",
        "gif",
        "bmp",
        "tif",
        "tiff",
        "avif",
        "jp2",
        "j2k",
        "ppm",
        "pgm",
        "tga",
        "img",
    ]
)
VIDEOS = frozenset(
    ["mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "wmv", "flv", "3gp", "ogv"]
)
_TEXTS = frozenset(("txt", "text", "caption"))
_VERSION = 1


class WebDatasetExamples(ShardedRows):
    """The samples of WebDataset tars.

    Reading is safe from several threads.

    Args:
        source: a file, a folder, or a pattern such as 'data/{00000..01242}.tar' (shards.py).
        fields: the key map; its values are keys of the JSON, or suffixes of members.
        image_root: where names of files in rows begin; None takes the folder of the first tar.
        index: where the indexes of the tars are kept (stored_index.index_folder).

    Raises:
        FileNotFoundError: there is no tar.
        ValueError: none can be read; the message says why.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        fields: FieldMap | None = None,
        image_root: str | os.PathLike[str] | None = None,
        *,
        index: str | os.PathLike[str] | None = None,
    ):
        files = files_of(os.fspath(source), SUFFIXES)
        self._index = _index(files, index_folder(index, files[0]))
        root = buckets.folder(files[0].parent if image_root is None else image_root)
        shards = [
            Shard(path, rows, digest, broken)
            for path, (rows, digest, broken, _) in zip(
                files, self._index.about["shards"], strict=True
            )
        ]
        super().__init__(os.fspath(source), shards, root, fields or FieldMap())
        self._cut = [cut for _, _, _, cut in self._index.about["shards"]]
        self._wanted = frozenset(path for path in self.fields.fields.values() if path)
        self._pool: ReaderPool[int] = ReaderPool(open_descriptor, os.close)

    def _read(self, shard: int, row: int) -> Mapping[str, Any]:
        # Every shard has one place more than samples: its end.
        first = int(self._begins[shard]) + shard + row
        begin, end = (int(place) * BLOCK for place in self._index["starts"][first : first + 2])
        with self._pool.use(str(self.shards[shard].path)) as descriptor:
            content = os.pread(descriptor, end - begin, begin)
        last = row == self.shards[shard].rows - 1
        if self._cut[shard] and last:
            raise Fault("corrupt_shard", self._cut[shard])
        try:
            return sample_row(content, self._wanted)
        except tarfile.TarError as error:
            path = self.shards[shard].path
            raise Fault(
                "corrupt_shard",
                f"{path} is not the tar that was indexed, or is damaged at byte {begin} ({error}); download it again, "
                f"or remove {self._index.path}",
            ) from error


def sample_row(content: bytes, wanted: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The row of a sample, from the part of the tar that has its members.

    Args:
        content: the members with their headers.
        wanted: suffixes that are keys of the row themselves.

    Raises:
        Fault: the JSON is not an object, or a suffix occurs twice.
        tarfile.TarError: the bytes are not members of a tar.
    """
    row: dict[str, Any] = {}
    members: dict[str, Any] = {}
    numbered: dict[str, list[tuple[int, bytes]]] = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
        for member in tar:
            if not member.isreg():
                continue
            file, (name, suffix) = tar.extractfile(member), sample_name(member.name)
            assert file is not None  # It is a regular file.
            value = file.read()
            key, _, kind = suffix.lower().rpartition(".")
            if suffix in wanted:
                members[suffix] = value if kind in IMAGES | VIDEOS else _text(value, suffix)
                continue
            if kind == "json" and not key:
                row = parsed(value, member.name)
                continue
            of, _, place = key.rpartition(".")
            if place.isdecimal() and kind in IMAGES and of in ("", *MEDIA):
                numbered.setdefault(of or "image", []).append((int(place), value))
                continue
            new, value = _member(key, kind, value, suffix)
            if new in members:
                raise Fault(
                    "unknown_format",
                    f"the sample {name} has two members for {new}: {suffix} is the second",
                )
            members[new] = value
    for key, values in numbered.items():
        members[key] = [value for _, value in sorted(values, key=lambda item: item[0])]
    return row | members


def _member(key: str, kind: str, value: bytes, suffix: str) -> tuple[str, Any]:
    """The key of a member, and its value."""
    if kind in IMAGES or kind in VIDEOS:
        usual = "image" if kind in IMAGES else "video"
        return (key if key in MEDIA else usual if not key else suffix), value
    if kind in _TEXTS and (not key or key in KEYS):
        return key or "caption", _text(value, suffix)
    if kind == "json" and key in KEYS:
        return key, parse_json(value, suffix)
    return suffix, value


def parsed(value: bytes, name: str) -> dict[str, Any]:
    """The object of a JSON text; Fault if it is none."""
    try:
        entry = parse_json(value, name)
    except ValueError as error:
        raise Fault("malformed_json", str(error)) from error
    if not isinstance(entry, dict):
        raise Fault("malformed_json", f"{name} is a {type(entry).__name__}, not an object")
    return entry


def _text(value: bytes, suffix: str) -> str:
    try:
        return value.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Fault("invalid_text", f"{suffix} is not UTF-8: {error}") from error


def _index(files: list[Path], folder: Path) -> MappedArrays:
    """The samples' places of all tars in one file, which processes share."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        stamps = list(pool.map(lambda path: stamp(path, samples=4), files))
        about = {"version": _VERSION, "files": stamps}
        kept = find(folder, "tars", about)
        if kept is not None:
            return kept
        parts = list(pool.map(lambda path: _part(path, folder), files))
    shards = [
        [1, str(known["content"]), part, ""]
        if isinstance(part, str)
        else [len(part.starts) - 1, part.digest, "", part.cut]
        for known, part in zip(stamps, parts, strict=True)
    ]
    starts = [np.zeros(2, np.uint32) if isinstance(part, str) else part.starts for part in parts]
    return write(folder, "tars", about, {"starts": np.concatenate(starts)}, {"shards": shards})


def _part(path: Path, folder: Path) -> TarIndex | str:
    """A tar's index, or why it has none."""
    try:
        return index_tar(path, folder)
    except NotATar as error:
        return str(error)
