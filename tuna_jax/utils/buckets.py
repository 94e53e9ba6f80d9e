"""Objects in Google Cloud Storage by their address, `gs://BUCKET/NAME`."""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import io
import os
import posixpath
import threading
from pathlib import Path
from typing import Any, BinaryIO

from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.regular_files import with_retries

_SCHEME = "gs://"
_KEPT = 64 * 2**20  # Bytes; the content of a larger object is not kept for the next look at it.
_last = threading.local()


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the address of a bucket."""
    return "://" in os.fspath(path)


def file_system() -> Any:
    """Google Cloud Storage as an fsspec file system that reads every listing again.

    Raises:
      ImportError: gcsfs is not installed.
    """
    try:
        import gcsfs
    except ImportError as error:
        raise ImportError(
            "gs:// needs the library gcsfs: pip install 'tuna_jax[gcs]', or mount the bucket and pass its folder"
        ) from error
    # An emulator (for tests) knows no accounts.
    token = "anon" if os.environ.get("STORAGE_EMULATOR_HOST") else None
    return gcsfs.GCSFileSystem(token=token, use_listings_cache=False, skip_instance_cache=True)


@functools.lru_cache(maxsize=4)
def _reading(process: int) -> Any:
    """The file system that this process reads with; one that was made before a fork does not work after it."""
    return file_system()


@dataclasses.dataclass(frozen=True)
class BucketFile:
    """An object in a bucket, in the place of a local file.

    Attributes:
      address: `gs://BUCKET/NAME`.
    """

    address: str

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str) -> BucketFile | Path:
        """What a name in this folder stands for; an absolute name is a local file's, an address its own."""
        if name.startswith(_SCHEME):
            return BucketFile(name)
        if os.path.isabs(name):
            return Path(name)
        inside = posixpath.normpath(posixpath.join(self.address.removeprefix(_SCHEME), name))
        return BucketFile(_SCHEME + inside)

    @property
    def suffix(self) -> str:
        """The ending of its name, with the dot."""
        return os.path.splitext(self.address)[1]

    def open(self) -> BinaryIO:
        """Its whole content as a binary file; the last one that this thread opened is kept, as media are looked at
        more than once.

        Raises:
          FileNotFoundError: there is no such object.
          OSError: the bucket cannot be read.
        """
        if getattr(_last, "address", None) == self.address:
            return io.BytesIO(_last.content)
        content = with_retries(lambda: _called("cat_file", self.address))
        if len(content) <= _KEPT:
            _last.address, _last.content = self.address, content
        return io.BytesIO(content)


def folder(path: str | os.PathLike[str]) -> Path | BucketFile:
    """A folder, local or in a bucket, to which names of files are joined with `/`."""
    name = os.fspath(path)
    return BucketFile(name.rstrip("/")) if name.startswith(_SCHEME) else Path(path)


def absolute(folder: Path | BucketFile) -> str:
    """A folder's name that holds in every working directory."""
    return str(folder.absolute() if isinstance(folder, Path) else folder)


def local_copy(address: str, kept: Path) -> Path:
    """A local copy of an object, made again if the object was replaced.

    Args:
      address: `gs://BUCKET/NAME`.
      kept: folder of copies; safe to share between processes.

    Returns:
      A file whose name is the object's, and whose time is the object's, the same on every host.

    Raises:
      FileNotFoundError: there is no such object.
      OSError: the bucket cannot be read, or the copy not written.
    """
    about = information(address)
    version = str(about.get("generation") or about.get("etag") or about["size"])
    place = hashlib.sha256(f"{address} {version}".encode()).hexdigest()[:20]
    path = kept / place / address.rpartition("/")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as scratch:
            with_retries(lambda: _called("get_file", address, os.fspath(scratch)))
            time = 1000 * int(version) if version.isdecimal() else 0
            os.utime(scratch, ns=(time, time))  # A generation is a time in microseconds.
    return path


def information(address: str) -> dict[str, Any]:
    """What the bucket says of an object: `size` in bytes, `generation` and others.

    Raises:
      FileNotFoundError: there is no such object.
      OSError: the bucket cannot be read.
    """
    return with_retries(lambda: _called("info", address))


def _called(method: str, address: str, *arguments: Any) -> Any:
    """The result of a method of the file system.

    gcsfs tries again what a bucket refuses for a moment. What it raises then is an OSError of input and output, so that
    nobody takes it for a property of the object.
    """
    try:
        return getattr(_reading(os.getpid()), method)(address, *arguments)
    except (FileNotFoundError, ImportError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise OSError(errno.EREMOTEIO, f"{address} cannot be read: {error}") from error
