"""Names of the files of a source: a file, a folder, a pattern with * or {000..128}, or several of them with commas."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_BRACES = re.compile(r"\{([^{}]*)\}")


def shard_name(shard: int, shards: int) -> str:
    """The name of the files of shard `shard` of `shards`, without the suffix."""
    return f"{shard:05d}-of-{shards:05d}"


def expand(text: str) -> list[str]:
    """A text with braces as the texts that it stands for, as WebDataset and shells do: 'a{0..2}' -> a0, a1, a2."""
    match = _BRACES.search(text)
    if match is None:
        return [text]
    inner = match.group(1)
    ends = inner.split("..")
    if len(ends) == 2 and all(end.isdigit() for end in ends):
        width = len(ends[0]) if ends[0].startswith("0") else 0
        choices = [str(n).zfill(width) for n in range(int(ends[0]), int(ends[1]) + 1)]
    else:
        choices = inner.split(",")
    before, after = text[: match.start()], text[match.end() :]
    return [before + c + rest for c, rest in itertools.product(choices, expand(after))]


def files_of(source: str, suffixes: Sequence[str]) -> list[Path]:
    """The files that a source names, those of a folder or a pattern in the order of their names.

    Args:
        source: see the module's docstring.
        suffixes: of the files of a folder, such as '.parquet'; subfolders are searched too.

    Raises:
        FileNotFoundError: a file does not exist, or a folder or pattern has none.
        ValueError: a file is named twice.
    """
    files = [path for part in _parts(source) for path in _files(part, suffixes)]
    seen: set[str] = set()
    for path in files:
        real = os.path.realpath(path)
        if real in seen:
            raise ValueError(
                f"{source} names the file {path} twice; its examples would count twice"
            )
        seen.add(real)
    return files


def _parts(source: str) -> Iterator[str]:
    """The parts between commas, except commas within braces."""
    depth, part = 0, ""
    for character in source:
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            yield from filter(None, [part.strip()])
            part = ""
        else:
            part += character
    yield from filter(None, [part.strip()])


def _files(part: str, suffixes: Sequence[str]) -> list[Path]:
    if Path(part).is_dir():
        found = [
            Path(root) / name
            for root, _, names in os.walk(part, followlinks=True)
            for name in names
            if name.endswith(tuple(suffixes)) and not name.startswith(".")
        ]
        if not found:
            raise FileNotFoundError(f"the folder {part} has no files {' or '.join(suffixes)}")
        return sorted(found)
    if Path(part).is_file():
        return [Path(part)]
    listed = expand(part)
    if len(listed) == 1 and glob.has_magic(part):
        found = sorted(Path(name) for name in glob.glob(part, recursive=True))
        if not found:
            raise FileNotFoundError(f"no file matches {part}")
        return found
    paths = []
    for name in listed:
        paths += sorted(map(Path, glob.glob(name))) if glob.has_magic(name) else [Path(name)]
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        count = (
            f"{len(missing)} of {len(paths)} files of {part} do not"
            if len(paths) > 1
            else "it does not"
        )
        raise FileNotFoundError(f"{missing[0] if missing else part}: {count} exist")
    return paths
