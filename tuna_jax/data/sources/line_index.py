"""Where the examples of a manifest are in its file: their byte ranges, found without keeping the file in memory.

A file of JSON lines has one per line that is not blank. What plainly is something else is read as that: a JSON array
(as LLaVA's own files are) has one per item, objects over several lines each (as `jq` prints them) are one each, a file
with only carriage returns ends its lines with them, and UTF-16 or UTF-32 text is converted, in memory.

Of a large file the index is kept: the next start finds it by the file's size, time and parts of its content, and does
not read the file. It takes 4 bytes per line, which all processes of a host share.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from tuna_jax.data.sources.stored_index import MappedArrays, find, stamp, write
from tuna_jax.utils.text_files import packed_as

_CHUNK = 1 << 24
_VERSION = 1  # Of kept indexes.
KEEP_FROM = 1 << 26
"""Bytes of a file from which on its index is kept."""
_SHORT = 64  # Bytes; lines up to this length are looked at for being blank.
_BOM = b"\xef\xbb\xbf"
_WHITE = b" \t\r\n"
# Whole strings, and everything outside of strings that bounds an item. A lone quote begins a string without an end.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)


class LineIndex:
    """The examples of a file.

    Args:
        digest: SHA-256 of the file.
        arrays: where they are: `starts`, `ends` and `numbers` (int64), or the compact ones of `_compact`.
        content: the whole file as UTF-8 if the file is not; else None, and the places are in the file.

    Attributes:
        digest, content: as given.
        rows: their number.
    """

    def __init__(
        self, digest: str, arrays: Mapping[str, np.ndarray] | MappedArrays, content: bytes | None
    ):
        self.digest, self.content, self._arrays = digest, content, arrays
        self._is_compact = "offsets" in arrays
        self.rows = len(arrays["offsets"]) if self._is_compact else len(arrays["starts"])

    def number(self, index: int) -> int:
        """The line of an example, counted from 1; in an array, the number of the item."""
        if not self._is_compact:
            return int(self._arrays["numbers"][index])
        gaps = self._arrays["gaps"]
        before = int(np.searchsorted(gaps[0], index, side="right"))
        return index + 1 + (int(gaps[1, before - 1]) if before else 0)

    def place(self, index: int) -> tuple[int, int | None]:
        """The first and the last byte (exclusive) of an example; None: its line ends where the next newline is."""
        if not self._is_compact:
            return int(self._arrays["starts"][index]), int(self._arrays["ends"][index])
        return self._start(index), None

    def limit(self, index: int) -> int:
        """A byte after the end of an example's line: where the next example begins, or the file ends."""
        return self._start(index + 1) if index + 1 < self.rows else int(self._arrays["size"][0])

    def _start(self, index: int) -> int:
        block = int(self._arrays["block"][0])
        return int(self._arrays["bases"][index // block]) + int(self._arrays["offsets"][index])

    @property
    def bytes(self) -> int:
        """Of the arrays."""
        names = ("offsets", "bases", "gaps") if self._is_compact else ("starts", "ends", "numbers")
        return sum(self._arrays[name].nbytes for name in names)


def index_lines(path: Path, folder: Path | None = None, verify: bool = False) -> LineIndex:
    """Finds the examples of a file; see the module's docstring.

    Args:
        path: the file.
        folder: where the index of a large file is kept; None keeps none.
        verify: read the whole file, and compare its SHA-256 with that of the index.

    Raises:
        ValueError: the file is packed, or is no text; the message says what it is. Or an index is damaged or of other
            data, or `verify` found another content.
    """
    if folder is None or path.stat().st_size < KEEP_FROM:
        return _index(path)
    about = {"version": _VERSION, **stamp(path)}
    kept = find(folder, "lines", about)
    if kept is None:
        found = _index(path)
        if found.content is not None:
            return found  # Its places are in memory only.
        arrays, more = found._arrays, {"digest": found.digest}
        assert not isinstance(arrays, MappedArrays)  # It was made now.
        kept = write(folder, "lines", about, arrays, more)
    elif verify:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != kept.about["digest"]:
            raise ValueError(
                f"{path} is not the file that was indexed, though its size, time and the sampled parts of its content "
                f"are the same; remove {kept.path}, and it is indexed again"
            )
    return LineIndex(kept.about["digest"], kept, None)


def _index(path: Path) -> LineIndex:
    with path.open("rb") as file:
        if packed := packed_as(file.read(8)):
            raise ValueError(f"{path} is {packed}, not lines of JSON: unpack or convert it")
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.seek(0, 2)
        file.seek(0)
        encoding = json.detect_encoding(file.read(4))
        if not encoding.startswith("utf-8"):
            content = _as_utf8(path.read_bytes(), encoding)
            return LineIndex(digest, _named(*_find(content)[:3]), content)
        if not size:
            nothing = np.zeros(0, np.int64)
            return LineIndex(digest, _named(nothing, nothing, nothing), None)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            *found, plain = _find(mapped)
        if plain:
            return LineIndex(digest, _compact(found[0], found[2], size), None)
        return LineIndex(digest, _named(*found), None)


def _named(starts: np.ndarray, ends: np.ndarray, numbers: np.ndarray) -> dict[str, np.ndarray]:
    return {"starts": starts, "ends": ends, "numbers": numbers}


def _compact(starts: np.ndarray, numbers: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """Lines that end at newlines: 4 bytes each, counted from the first of their block.

    `gaps` is (an example, by how much its line is further than its number from there on), where blank lines are.
    """
    for block in (1024, 32, 1):
        bases = starts[::block]
        offsets = starts - np.repeat(bases, block)[: len(starts)]
        if not len(offsets) or offsets.max() <= np.iinfo(np.uint32).max:
            break
    skipped = numbers - np.arange(1, len(numbers) + 1)
    at = np.flatnonzero(np.diff(skipped, prepend=0))
    return {
        "bases": bases,
        "offsets": offsets.astype(np.uint32),
        "block": np.array([block], np.int64),
        "gaps": np.stack([at, skipped[at]]).astype(np.int64),
        "size": np.array([size], np.int64),
    }


def _as_utf8(content: bytes, encoding: str) -> bytes:
    try:
        text = content.decode(encoding, "surrogatepass")
    except UnicodeDecodeError:  # Cut within a character, for example.
        text = content.decode(encoding, "replace")
    return text.removeprefix("\ufeff").encode("utf-8", "surrogatepass")


def _find(content: bytes | mmap.mmap) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """Starts, ends and numbers of the examples, and whether they are lines that end at newlines."""
    begin = len(_BOM) if content[: len(_BOM)] == _BOM else 0
    starts, ends, numbers = _lines(content, begin, b"\n")
    if not len(starts):
        return starts, ends, numbers, False
    first = int(starts[0])
    if content[first : min(first + _SHORT, int(ends[0]))].lstrip(_WHITE)[:1] == b"[":
        if _is_array(content, starts, ends):
            return *_items(content, first), False
    elif content[first : int(ends[0])].strip(_WHITE) == b"{":
        return *_objects(content, first), False
    elif len(starts) == 1:
        only = content[int(starts[0]) : int(ends[0])]
        if b"\r" in only.strip() and not _is_json(only):
            return *_lines(content, begin, b"\r"), False
    return starts, ends, numbers, True


def _lines(
    content: bytes | mmap.mmap, begin: int, end: bytes
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts, ends and numbers of the lines that are not blank."""
    found = []
    for at in range(0, len(content), _CHUNK):
        chunk = np.frombuffer(content[at : at + _CHUNK], np.uint8)
        found.append(np.flatnonzero(chunk == ord(end)) + at)
    if content[len(content) - 1 :] != end:
        found.append(np.array([len(content)]))
    ends = np.concatenate(found).astype(np.int64)
    starts = np.concatenate([[begin], ends[:-1] + 1]).astype(np.int64)
    kept = ends > starts
    for index in np.flatnonzero(kept & (ends - starts <= _SHORT)):
        kept[index] = bool(content[int(starts[index]) : int(ends[index])].strip(_WHITE))
    return starts[kept], ends[kept], np.arange(1, len(ends) + 1)[kept]


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except RecursionError:
        return _closes_at_its_end(text)
    except ValueError:
        return False
    return True


def _closes_at_its_end(text: bytes) -> bool:
    """Whether the bracket that begins a text is closed by its last one, and nothing but white space follows."""
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += (token.group() in b"[{") - (token.group() in b"]}")
        if depth <= 0:
            return not text[token.end() :].strip(_WHITE)
    return False


def _is_array(content: bytes | mmap.mmap, starts: np.ndarray, ends: np.ndarray) -> bool:
    """Whether a file that begins with `[` is one array, and not lines of which the first begins with one."""
    if len(starts) == 1:
        return True
    if _is_json(content[int(starts[0]) : int(ends[0])]):
        return False
    if content[int(ends[-1]) - 1 : int(ends[-1])] == b"]" or content[
        int(starts[-1]) : int(ends[-1])
    ].rstrip(_WHITE).endswith(b"]"):
        return True
    # Cut off at its end: in an array, commas follow the lines.
    return not _is_json(content[int(starts[1]) : int(ends[1])])


def _items(content: bytes | mmap.mmap, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts, ends and numbers of the items of an array. One that is not valid JSON is still an item."""
    ranges = [
        (first, last)
        for first, last in _item_ranges(content, content.find(b"[", start) + 1)
        if content[first:last].strip(_WHITE)
    ]
    bounds = np.array(ranges, np.int64).reshape(-1, 2)
    return bounds[:, 0], bounds[:, 1], np.arange(1, len(bounds) + 1)


def _objects(content: bytes | mmap.mmap, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts, ends and line numbers of values in brackets that follow each other, with or without commas."""
    ranges, depth, begin = [], 0, start
    for token in _TOKEN.finditer(content, start):
        depth += (token.group() in b"[{") - (token.group() in b"]}")
        if depth <= 0 and token.group() in b"]}":
            ranges.append((begin, token.end()))
            begin, depth = token.end(), 0
    ranges.append((begin, len(content)))
    bounds, numbers, line, counted = [], [], 1, 0
    for first, last in ranges:
        text = content[first:last]
        kept = text.lstrip(_WHITE + b",")
        first = last - len(kept)
        if kept:
            line += content[counted:first].count(b"\n")
            counted = first
            bounds.append((first, last))
            # Two on one line are distinguished by their numbers.
            numbers.append(max(line, numbers[-1] + 1) if numbers else line)
    found = np.array(bounds, np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1], np.array(numbers, np.int64)


def _item_ranges(content: bytes | mmap.mmap, begin: int) -> Iterator[tuple[int, int]]:
    """The ranges between the commas of an array, whose content starts at `begin`."""
    depth = 0
    for token in _TOKEN.finditer(content, begin):
        kind = token.group()
        if kind in b"[{":
            depth += 1
        elif kind in b"]}":
            depth -= 1
        elif kind == b'"':
            break
        ended = depth < 0
        if ended or (depth == 0 and kind == b","):
            yield begin, token.start()
            begin = token.end()
        if ended:
            break
    if content[begin:].strip(_WHITE):
        yield begin, len(content)
