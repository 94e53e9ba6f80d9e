"""Text files and JSON lines, of users and of this package: the one place that decodes them and splits them into lines.

A line ends at a newline, with or without a carriage return before it, and nowhere else: `str.splitlines` also splits at
U+2028, U+0085 and form feeds, which JSON strings and prompts may hold. A file without any newline that has carriage
returns ends its lines with those. A byte order mark is no part of the text, and a file that is plainly UTF-16 or UTF-32
is read as that. `tests/utils/test_text_files.py` checks that no other module splits or decodes files itself.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tuna_jax.utils.file_content import hint

PathLike = str | os.PathLike[str]
_BOM = "\ufeff"
_PACKED = {
    b"\x1f\x8b": "a gzip file",
    b"PK\x03\x04": "a ZIP file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"SQLite f": "a SQLite database",
    b"version ": "a pointer of Git LFS (run `git lfs pull`)",
}
"""By first bytes: files that are not text, or not the text that their name promises."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def packed_as(head: bytes) -> str:
    """What a file is that is no text, by its first 8 bytes; '' if they do not say."""
    return next((name for magic, name in _PACKED.items() if head.startswith(magic)), "")


def decode(content: bytes, where: str) -> str:
    """The text of a whole file, without its byte order mark.

    Args:
      content: the file's bytes: UTF-8, or UTF-16 or UTF-32 that a byte order mark or its zero bytes reveal.
      where: the file, for the message.

    Raises:
      ValueError: the bytes are not text; the line is named.
    """
    if content.startswith(b"version https://git-lfs"):
        raise ValueError(f"{where} is {packed_as(content[:8])}")
    encoding = json.detect_encoding(content[:4])
    try:
        return content.decode(encoding).removeprefix(_BOM)
    except UnicodeDecodeError as error:
        if packed := packed_as(content[:8]):
            raise ValueError(f"{where} is {packed}, not text: unpack or convert it") from error
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{where}:{line}: not {'UTF-8' if encoding.startswith('utf-8') else encoding.upper()} text "
            f"({error.reason}, byte {error.start}); save the file as UTF-8"
        ) from error


def split_lines(text: str) -> list[str]:
    """The lines of a text without their ends; the nth has number n + 1 in every editor that counts newlines."""
    end = "\r" if "\r" in text and "\n" not in text else "\n"
    lines = [line.removesuffix("\r").removeprefix(_BOM) for line in text.split(end)]
    return lines[:-1] if lines[-1] == "" else lines


def read_text(path: PathLike) -> str:
    """The text of a file, without its byte order mark.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is not text; file and line are named.
    """
    return decode(Path(path).read_bytes(), os.fspath(path))


def numbered_lines(path: PathLike) -> list[tuple[int, str]]:
    """(number from 1, line) of every line of a file that is not blank; raises as `read_text`."""
    return [(n, line) for n, line in enumerate(split_lines(read_text(path)), 1) if line.strip()]


def parse_json(content: str | bytes, where: str) -> Any:
    """A JSON value.

    Raises:
      ValueError: it is not JSON, is nested too deeply, or has too many digits for Python to read; `where` is named.
    """
    try:
        return json.loads(content.decode() if isinstance(content, bytes) else content)
    except (ValueError, RecursionError) as error:  # ValueError: of JSON, of UTF-8, of long numbers.
        raise ValueError(f"{where}: not JSON: {error}") from error


def read_json(path: PathLike) -> Any:
    """The value of a JSON file.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is not JSON; the file, and what it holds instead if that is known, are named.
    """
    try:
        return parse_json(read_text(path), os.fspath(path))
    except ValueError as error:
        known = "" if "Git LFS" in str(error) else hint(path)
        raise ValueError(f"{error}{known}") from error


def read_json_lines(path: PathLike) -> Iterator[tuple[str, Any]]:
    """('FILE:LINE', value) of every line of a file of JSON lines; of a file that is one JSON array, its items.

    Raises:
      OSError: the file cannot be read.
      ValueError: a line is not JSON; file and line are named.
    """
    text, name = read_text(path), os.fspath(path)
    if text.lstrip().startswith("["):
        try:
            items = json.loads(text)
        except (ValueError, RecursionError):
            items = None  # Its lines say what is wrong.
        if isinstance(items, list):
            for number, item in enumerate(items, 1):
                yield f"{name}, item {number}", item
            return
    for number, line in enumerate(split_lines(text), 1):
        if line.strip():
            where = f"{name}:{number}"
            yield where, parse_json(line, where)


def read_log(path: PathLike) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines that this package appends to; what a killed process left torn is skipped."""
    rows = []
    for line in Path(path).read_bytes().split(b"\n"):
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def json_line(value: Any) -> str:
    """A value as a line of JSON, with its newline, that can always be written as UTF-8.

    Half of a surrogate pair, as in a file name that is not UTF-8, becomes JSON's escape, so `json.loads` returns it. A
    number that is not finite becomes null: JSON has neither NaN nor infinity, and most readers refuse them.
    """
    return json_text(value) + "\n"


def json_text(value: Any, **options: Any) -> str:
    """A value as JSON, with the rules of `json_line` and further options of `json.dumps`."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, **options)
    return text.encode("utf-8", "backslashreplace").decode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def surrogate_in(text: str) -> str | None:
    """What in a text cannot be written as UTF-8, in words; None if everything can.

    Python keeps bytes of a command line that are not UTF-8, and JSON's `\\ud83d` without its partner, as such halves.
    """
    match = _SURROGATE.search(text)
    if match is None:
        return None
    return (
        f"character {match.start() + 1} of it is U+{ord(match.group()):04X}, half of a surrogate pair, "
        "which is not a character: the text was not UTF-8, or was cut inside an emoji"
    )


def check_texts(value: Any, where: str) -> None:
    """Raises ValueError if a text anywhere in a JSON value cannot be written as UTF-8; `where` is named."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            pending += item
        elif isinstance(item, str):
            check_text(item, f"{where}: {item[:60]!r}")


def check_text(text: str, where: str) -> str:
    """The text.

    Raises:
      ValueError: it holds half of a surrogate pair; `where` is named.
    """
    if wrong := surrogate_in(text):
        raise ValueError(f"{where}: {wrong}")
    return text
