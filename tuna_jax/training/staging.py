"""Folders in Google Cloud Storage: a command given `gs://bucket/run` works in a local folder that mirrors it.

Checkpoints are written to and read from the bucket directly (`stored` says where); they never are on the local disk.
Everything else that a command writes (logs, samples, reports, exported weights) is written to the local folder and
copied to the bucket: every half minute, before each checkpoint, and at the end. An object in a bucket appears whole or
not at all. After a kill the bucket is what the next start reads, as after a crash of a machine with a local disk.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging
from etils import epath

from tuna_jax.utils.buckets import file_system, is_address

CHECKPOINTS = "checkpoints"
_PREFIX = "tuna_jax_bucket_"
_EVERY = 30.0  # Seconds between copies of what has changed.
_PULLED = 16 * 2**20  # Bytes; larger files of a run are not needed to continue it.
_PAUSES = (1.0, 4.0, 16.0)  # Seconds before a copy is tried again.

_Stamp = tuple[int, int]


def stored(path: str | os.PathLike[str]) -> epath.Path:
    """Where a checkpoint, or a folder of them, lies: in the bucket if the workdir mirrors one, else at `path`."""
    if is_address(path):
        return epath.Path(path)
    path = Path(path)
    for workdir in (path.parent, path.parent.parent):
        inside = path.relative_to(workdir)
        if inside.parts[:1] == (CHECKPOINTS,) and (mirror := _mirrors.get(workdir.resolve())):
            return epath.Path(mirror.address) / inside.as_posix()
    return epath.Path(path)


def address_of(path: str | os.PathLike[str]) -> str:
    """The address of what a local folder mirrors; the path itself if it mirrors nothing."""
    path = Path(path)
    for folder in (path, *path.parents):
        if mirror := _mirrors.get(folder.resolve()):
            inside = path.relative_to(folder).as_posix()
            return mirror.address if inside == "." else f"{mirror.address}/{inside}"
    return str(path)


def flush(folder: str | os.PathLike[str]) -> None:
    """Copies what has changed in a mirrored folder to its bucket now; does nothing for other folders.

    Raises:
      OSError: the bucket cannot be written.
    """
    if mirror := _mirrors.get(Path(folder).resolve()):
        mirror.flush()


@contextlib.contextmanager
def staged(path: str) -> Iterator[str]:
    """The folder to work in for `path`: itself, or for `gs://...` a local folder that mirrors it.

    Raises:
      ValueError: the address is of another kind of storage.
      ImportError: the library for Google Cloud Storage is not installed.
      OSError: the bucket cannot be read; or at the end it cannot be written: then the local folder stays, and is named.

    After an error in the block, what was written until then is copied too.
    """
    if not is_address(path):
        yield path
        return
    if not re.fullmatch(r"gs://[^/]+/.+", path.rstrip("/")):
        raise ValueError(
            f"{path} is not a folder in a bucket; give gs://BUCKET/FOLDER, or mount the storage and pass its folder"
        )
    inside = re.fullmatch(rf"(gs://.+?)/({CHECKPOINTS}(/[^/]+)?)", path.rstrip("/"))
    if inside:
        with staged(inside[1]) as workdir:
            yield os.path.join(workdir, inside[2])
        return
    _remove_left()
    root = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}_")).resolve()
    mirror = _Mirror(path.rstrip("/"), root / path.rstrip("/").rpartition("/")[2])
    _mirrors[mirror.folder] = mirror
    _addresses[str(mirror.folder)] = mirror.address
    try:
        mirror.pull()
        try:
            with mirror.copied_now_and_then():
                yield str(mirror.folder)
        finally:
            _copy_last(mirror, root)
    finally:
        del _mirrors[mirror.folder]


def _copy_last(mirror: _Mirror, root: Path) -> None:
    """Copies what is left to the bucket, then removes the local folder; it stays if the bucket cannot be written."""
    try:
        mirror.flush()
    except OSError as error:
        # `_remove_left` would take it for that of a command that was killed.
        kept = root.rename(root.with_name(f"kept_{root.name}"))
        raise OSError(
            f"{mirror.address} cannot be written ({error}); {kept} keeps what the command wrote, copy it yourself"
        ) from error
    if mirror.written:
        print(f"{mirror.written} files were copied to {mirror.address}", file=sys.stderr)
    shutil.rmtree(root, ignore_errors=True)


class _Mirror:
    """A local folder and its address in a bucket."""

    def __init__(self, address: str, folder: Path):
        self.address, self.folder = address, folder
        self._files = file_system()
        self.written = 0
        self._copied: dict[str, _Stamp] = {}
        self._lock = threading.Lock()

    def pull(self) -> None:
        """Fills the folder: small files, and weights where there are no checkpoints."""
        self.folder.mkdir(parents=True, exist_ok=True)
        root = self._key("")
        try:
            found = self._files.find(root, detail=True)
        except FileNotFoundError:
            return
        keys = {key[len(root) :].lstrip("/"): value["size"] for key, value in found.items()}
        steps = {name.split("/")[1] for name in keys if name.startswith(f"{CHECKPOINTS}/")}
        for step in steps:  # So that a listing has them; `stored` says where they are.
            (self.folder / CHECKPOINTS / step).mkdir(parents=True, exist_ok=True)
        for name, size in keys.items():
            if _is_mirrored(name) and (size <= _PULLED or not steps):
                file = self.folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                self._retry(self._files.get_file, self._key(name), str(file))
                self._copied[name] = _stamp(file)

    def flush(self) -> None:
        """Copies what is new or has changed since the last time, and removes what was removed."""
        with self._lock:
            for name, file in self._existing().items():
                try:
                    stamp = _stamp(file)
                    if self._copied.get(name) == stamp:
                        continue
                    self._retry(self._files.put_file, str(file), self._key(name))
                except FileNotFoundError:  # Removed or renamed since it was listed.
                    continue
                self.written += name not in self._copied
                self._copied[name] = stamp
            for name in [n for n in self._copied if not (self.folder / n).exists()]:
                with contextlib.suppress(FileNotFoundError):
                    self._retry(self._files.rm_file, self._key(name))
                del self._copied[name]

    @contextlib.contextmanager
    def copied_now_and_then(self) -> Iterator[None]:
        """Flushes in a background thread; a failure is logged and tried again."""
        ended = threading.Event()

        def copy() -> None:
            while not ended.wait(_EVERY):
                try:
                    self.flush()
                except Exception as error:
                    logging.warning("%s cannot be written now: %s", self.address, error)

        thread = threading.Thread(target=copy, name="copies to the bucket", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _existing(self) -> dict[str, Path]:
        found = {}
        for folder, _, names in os.walk(self.folder):
            for name in names:
                file = Path(folder, name)
                relative = file.relative_to(self.folder).as_posix()
                if _is_mirrored(relative):
                    found[relative] = file
        return found

    def _key(self, name: str) -> str:
        return f"{self.address.partition('://')[2]}/{name}".rstrip("/")

    def _retry(self, call: Any, *arguments: str) -> None:
        for pause in (*_PAUSES, None):
            try:
                call(*arguments)
                return
            except FileNotFoundError:
                raise
            except Exception as error:  # Of the network, of HTTP, of aiohttp: all kinds.
                if pause is None:
                    raise OSError(f"{type(error).__name__}: {error}") from error
                time.sleep(pause)


_mirrors: dict[Path, _Mirror] = {}
_addresses: dict[str, str] = {}  # Of all mirrors that this process had.


def with_addresses(text: str) -> str:
    """A message with the addresses of buckets in place of the folders that mirror them."""
    for folder, address in _addresses.items():
        text = text.replace(folder, address)
    return text


def entries(folder: epath.Path) -> list[epath.Path]:
    """What a folder holds now; nothing if it does not exist. Folders in buckets exist only while they have files."""
    if is_address(folder):
        files, root = file_system(), os.fspath(folder).partition("://")[2].rstrip("/")
        try:
            names = {key.rstrip("/").rpartition("/")[2] for key in files.ls(root, detail=False)}
        except FileNotFoundError:
            return []
        return [folder / name for name in sorted(names)]
    return list(folder.iterdir())


def _is_mirrored(name: str) -> bool:
    """Names with a dot are scratch files and locks; checkpoints are in the bucket already."""
    parts = name.split("/")
    return parts[0] != CHECKPOINTS and not any(part.startswith(".") for part in parts)


def _stamp(file: Path) -> _Stamp:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _remove_left() -> None:
    """Removes the folders of commands that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        process = folder.name[len(_PREFIX) :].partition("_")[0]
        if process.isdecimal() and not Path("/proc", process).exists() and Path("/proc").exists():
            shutil.rmtree(folder, ignore_errors=True)
