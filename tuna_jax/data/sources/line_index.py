"""Where the examples of a manifest are in its file: their byte ranges, found without keeping the file in memory.

A file of JSON lines has one per line that is not blank. What plainly is something else is read as that: a JSON array
(as LLaVA's own files are) has one per item, objects over several lines each (as `jq` prints them) are one each, a file
with only carriage returns ends its lines with them, and UTF-16 or UTF-32 text is converted, in memory.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from tuna_jax.utils.text_files import packed_as

_CHUNK = 1 << 24
_SHORT = 64  # Bytes; lines up to this length are looked at for being blank.
_BOM = b"\xef\xbb\xbf"
_WHITE = b" \t\r\n"
# Whole strings, and everything outside of strings that bounds an item. A lone quote begins a string without an end.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)


class LineIndex(NamedTuple):
    """The examples of a file.

    Attributes:
        digest: SHA-256 of the file.
        starts, ends: their bytes.
        numbers: their lines, counted from 1; in an array, the items' numbers.
        content: the whole file as UTF-8 if the file is not; else None, and `starts` and `ends` are in the file.
    """

    digest: str
    starts: Int[np.ndarray, " examples"]
    ends: Int[np.ndarray, " examples"]
    numbers: Int[np.ndarray, " examples"]
    content: bytes | None


def index_lines(path: Path) -> LineIndex:
    """Finds the examples of a file; see the module's docstring.

    Raises:
        ValueError: the file is packed, or is no text; the message says what it is.
    """
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
            return LineIndex(digest, *_find(content), content)
        if not size:
            nothing = np.zeros(0, np.int64)
            return LineIndex(digest, nothing, nothing, nothing, None)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return LineIndex(digest, *_find(mapped), None)


def _as_utf8(content: bytes, encoding: str) -> bytes:
    try:
        text = content.decode(encoding, "surrogatepass")
    except UnicodeDecodeError:  # Cut within a character, for example.
        text = content.decode(encoding, "replace")
    return text.removeprefix("\ufeff").encode("utf-8", "surrogatepass")


def _find(content: bytes | mmap.mmap) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts, ends and numbers of the examples."""
    begin = len(_BOM) if content[: len(_BOM)] == _BOM else 0
    starts, ends, numbers = _lines(content, begin, b"\n")
    if not len(starts):
        return starts, ends, numbers
    first = int(starts[0])
    if content[first : min(first + _SHORT, int(ends[0]))].lstrip(_WHITE)[:1] == b"[":
        if _is_array(content, starts, ends):
            return _items(content, first)
    elif content[first : int(ends[0])].strip(_WHITE) == b"{":
        return _objects(content, first)
    elif len(starts) == 1:
        only = content[int(starts[0]) : int(ends[0])]
        if b"\r" in only.strip() and not _is_json(only):
            return _lines(content, begin, b"\r")
    return starts, ends, numbers


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
