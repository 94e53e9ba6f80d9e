"""The whole content of a source's files, compared with what it was when it was first looked at whole.

Sources recognise files by size, time and parts of their content. This reads everything, on request: a byte
that changed elsewhere, as on a failing disk, is found.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tuna_jax.data.sources.stored_index import find, write

_VERSION = 1


def verify_files(files: Sequence[Path], identity: str, folder: Path) -> None:
    """Compares the SHA-256 of files with those that are kept; the first time, keeps them.

    Args:
        files: of a source, in its order.
        identity: of the source.
        folder: of indexes.

    Raises:
        ValueError: a file has another content than when it was first verified; it is named, with the mend.
    """
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(_digest, files))
    about = {"version": _VERSION, "identity": identity, "files": [path.name for path in files]}
    kept = find(folder, "verified", about)
    if kept is None:
        write(folder, "verified", about, {"count": np.array([len(files)])}, {"sha256": digests})
        return
    changed = [
        path
        for path, digest, before in zip(files, digests, kept.about["sha256"], strict=True)
        if digest != before
    ]
    if changed:
        raise ValueError(
            f"{len(changed)} of {len(files)} files are not what they were when they were verified, the first "
            f"{changed[0]}, though size, time and the sampled parts of the content are the same: download them again, "
            f"or remove {kept.path} if they are right now"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
