"""Where the samples of a WebDataset tar are: found once, by its headers, and kept.

A sample is the members that follow each other with the same name up to the first dot after the last slash.
"""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt32

from tuna_jax.data.sources.stored_index import find, stamp, write
from tuna_jax.utils.file_content import hint
from tuna_jax.utils.text_files import packed_as

BLOCK = 512
_VERSION = 1


class TarIndex(NamedTuple):
    """The samples of a tar.

    Attributes:
        starts: of every sample, and the end of the last one, in blocks of 512 bytes.
        digest: of all headers, and of parts of the content.
        cut: why the last sample is not whole; '' if it is.
    """

    starts: UInt32[np.ndarray, " samples+1"]
    digest: str
    cut: str


class NotATar(ValueError):
    """A file that has no sample, because it is no tar, a packed one, or empty."""


def sample_name(member: str) -> tuple[str, str]:
    """'a/b.c.jpg' -> ('a/b', 'c.jpg')."""
    folder, slash, base = member.rpartition("/")
    name, _, suffix = base.partition(".")
    return folder + slash + name, suffix


def index_tar(path: Path, folder: Path | None) -> TarIndex:
    """The index of a tar, from the folder if it is there, which otherwise gets it.

    Args:
        path: the tar.
        folder: of indexes; None reads the headers again each time.

    Raises:
        NotATar: the file has no sample; the message says what it is and the mend.
        ValueError: an index in the folder is damaged or of other data.
    """
    if folder is None:
        return _walk(path)
    about = {"version": _VERSION, **stamp(path, samples=4)}
    kept = find(folder, "tar", about)
    if kept is not None:
        return TarIndex(np.array(kept["starts"]), kept.about["digest"], kept.about["cut"])
    index = _walk(path)
    more = {"digest": index.digest, "cut": index.cut}
    write(folder, "tar", about, {"starts": index.starts}, more)
    return index


def _walk(path: Path) -> TarIndex:
    """Reads all headers."""
    digest, starts, cut, sample = hashlib.sha256(), [], "", None
    size = path.stat().st_size
    with path.open("rb") as file:
        if packed := packed_as(file.read(8)):
            raise NotATar(
                f"{path} is {packed}, not a plain tar: unpack it (gunzip), then its samples have places"
            )
        file.seek(0)
        end = 0
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  It would keep every one.
                    begin, end = member.offset, _end_of(member)
                    name, suffix = sample_name(member.name)
                    digest.update(
                        f"{member.name} {member.size} {begin}\n".encode("utf-8", "replace")
                    )
                    if not member.isreg() or not suffix:
                        sample = None
                        continue
                    if name != sample:
                        starts.append(begin // BLOCK)
                        sample = name
                    if end > size:
                        cut = (
                            f"{path} is cut: {member.name} ends at byte {member.offset_data + member.size}, and the "
                            f"file at {size}; download it again"
                        )
                        break
        except (tarfile.TarError, EOFError) as error:
            if not starts:
                raise NotATar(
                    f"{path} is no tar ({error}){hint(path) or '; download it again'}"
                ) from error
            cut = f"{path} is damaged after byte {end} ({error}); download it again"
            starts.append(end // BLOCK)
    if not starts:
        raise NotATar(f"{path} has no samples{hint(path) or '; is it a WebDataset?'}")
    digest.update(stamp(path)["content"].encode())
    last = max(-(-min(end, size) // BLOCK), starts[-1] + 1)
    return TarIndex(np.array([*starts, last], np.uint32), digest.hexdigest()[:32], cut)


def _end_of(member: Any) -> int:
    return member.offset_data + -(-member.size // BLOCK) * BLOCK
