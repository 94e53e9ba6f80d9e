"""A folder, or the objects of a bucket, with the few operations that a run relies on; imports no JAX."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Protocol

from tuna_jax.utils.file_systems import renames_atomically


class Files(Protocol):
    """Files below one folder, by relative name."""

    @property
    def renames_folders(self) -> bool:
        """Whether a run renames folders here; in a bucket, mounted or not, it writes a marker file last instead."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, to the disk or the bucket."""

    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError without one."""
        ...

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder of this name."""
        ...

    def names(self, folder: str = "") -> list[str]:
        """What a folder lists, sorted."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Gives a file or folder another name."""

    def remove_all(self) -> None:
        """Removes the whole folder."""

    def forget(self, name: str) -> None:
        """Drops what this host's memory keeps of a file, so that reading it reads the disk."""

    def free(self) -> int | None:
        """Free bytes; None in a bucket."""
        ...


class LocalFiles:
    """Files in a folder of a file system, which may be mounted from anywhere."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    @property
    def renames_folders(self) -> bool:
        """False in a mounted bucket."""
        return renames_atomically(self._existing())

    def write(self, name: str, content: bytes) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def exists(self, name: str) -> bool:
        return (self._folder / name).exists()

    def names(self, folder: str = "") -> list[str]:
        return sorted(os.listdir(self._folder / folder))

    def rename(self, old: str, new: str) -> None:
        (self._folder / old).rename(self._folder / new)

    def remove_all(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def forget(self, name: str) -> None:
        with (self._folder / name).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def free(self) -> int | None:
        return shutil.disk_usage(self._existing()).free

    def _existing(self) -> Path:
        return next(path for path in (self._folder, *self._folder.parents) if path.exists())


class BucketFiles:
    """Objects below an address such as gs://bucket/runs, through the library that checkpoints use."""

    renames_folders = False

    def __init__(self, address: str) -> None:
        from etils import epath

        self._folder: Any = epath.Path(address)

    def write(self, name: str, content: bytes) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def exists(self, name: str) -> bool:
        return (self._folder / name).exists()

    def names(self, folder: str = "") -> list[str]:
        return sorted(path.name for path in (self._folder / folder).iterdir())

    def rename(self, old: str, new: str) -> None:
        (self._folder / old).rename(self._folder / new)

    def remove_all(self) -> None:
        if self._folder.exists():
            self._folder.rmtree()

    def forget(self, name: str) -> None:
        del name

    def free(self) -> int | None:
        return None


def open_files(address: str) -> Files:
    """The files of a folder, or of an address of a bucket."""
    return BucketFiles(address) if "://" in address else LocalFiles(address)
