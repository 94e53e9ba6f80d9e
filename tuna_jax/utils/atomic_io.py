"""The folder of prepared data, and files that are written atomically."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

CACHE_VARIABLE = "TUNA_JAX_DATA"


def cache_directory(directory: str | os.PathLike[str] | None = None) -> Path:
    """The folder of prepared data: the argument, else $TUNA_JAX_DATA, else ~/.cache/tuna_jax."""
    chosen = directory or os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "tuna_jax"
    return Path(chosen).expanduser()


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a scratch path next to `path`; on success it replaces `path` in one step, otherwise it is removed.

    Processes that write the same file at the same time do not conflict: the last one to finish wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `tempfile`: other users could not read its files.
    scratch = path.with_name(f".{path.name}-{uuid.uuid4().hex[:12]}")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
