"""Writes safetensors as a stream: tensors one by one, and in parts.

The writer of the safetensors library requires all tensors in memory, so this module writes the format itself: a header
(`utils/safetensors_files.header`), and the bytes of the tensors. The output is written to a temporary folder next to it
and renamed when it is complete. A mounted bucket neither renames folders nor takes bytes out of order: there the
temporary folder is on the local disk (TMPDIR), and its files are copied when they are complete.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from tuna_jax.conversion.readers import INDEX_SUFFIX, UNFINISHED, Entry
from tuna_jax.utils import safetensors_files
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.file_systems import renames_atomically
from tuna_jax.utils.safetensors_files import WORDS


class Writer:
    """Writes safetensors one tensor at a time, or in parts along their first axis.

    Use it as a context manager: on exit the output gets its final name if every byte was written; after an error
    nothing remains.

    Args:
      path: a `.safetensors` file; any other path is a folder of shards with an index.
      entries: shape and dtype of every tensor, in the order of the file.
      metadata: of the header.
      shard_bytes: largest size of a shard in bytes.
      name: first part of the file names in a folder.
      extra: further files of the folder, name -> text.

    Raises:
      FileExistsError: the output exists.
      OSError: there is not enough disk space; raised before anything is written.
    """

    def __init__(
        self,
        path: str | Path,
        entries: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
        *,
        metadata: Mapping[str, str] | None = None,
        shard_bytes: int = 5 * 10**9,
        name: str = "model",
        extra: Mapping[str, str] | None = None,
    ):
        self.path = Path(path)
        self._metadata, self._extra = dict(metadata or {}), dict(extra or {})
        self._entries = {key: Entry(shape, dtype, "") for key, (shape, dtype) in entries.items()}
        self._single = self.path.suffix == ".safetensors"
        if self.path.exists() and not _may_be_replaced(self.path):
            raise FileExistsError(
                f"{self.path} already exists and is not overwritten; use another output, or move it away"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._renames = renames_atomically(self.path.parent)
        parent = self.path.parent if self._renames else Path(tempfile.gettempdir())
        needed = sum(entry.nbytes for entry in self._entries.values())
        free = shutil.disk_usage(parent).free
        if needed > free:
            mend = (
                "use another output" if self._renames else "set TMPDIR to a folder of a larger disk"
            )
            raise OSError(
                f"{self.path} requires {needed / 1e9:.1f} GB, but the disk of {parent} has only {free / 1e9:.1f} GB "
                f"left; free some space, or {mend}"
            )
        self._name = name
        self._files = self._shards(shard_bytes)
        self._where: dict[str, tuple[int, int]] = {}
        self._missing = {key: entry.nbytes for key, entry in self._entries.items()}
        self._open: list[int] = []
        self._folder = Path(tempfile.mkdtemp(prefix=f".{self.path.name}-", dir=parent))
        try:
            self._write_headers()
        except BaseException:
            self._clear()
            raise

    def _shards(self, limit: int) -> dict[str, list[str]]:
        """File name -> its keys, in order."""
        groups: list[list[str]] = [[]]
        size = 0
        for key, entry in self._entries.items():
            if groups[-1] and not self._single and size + entry.nbytes > limit:
                groups.append([])
                size = 0
            groups[-1].append(key)
            size += entry.nbytes
        if self._single:
            return {self.path.name: groups[0]}
        if len(groups) == 1:
            return {f"{self._name}.safetensors": groups[0]}
        count = len(groups)
        return {
            f"{self._name}-{i:05d}-of-{count:05d}.safetensors": keys
            for i, keys in enumerate(groups, 1)
        }

    def _write_headers(self) -> None:
        for number, (name, keys) in enumerate(self._files.items()):
            header = safetensors_files.header(
                {
                    key: (WORDS[(entry := self._entries[key]).dtype], entry.shape, entry.nbytes)
                    for key in keys
                },
                self._metadata,
            )
            begin = len(header)
            size = sum(self._entries[key].nbytes for key in keys)
            position = begin
            for key in keys:
                self._where[key] = number, position
                position += self._entries[key].nbytes
            file = os.open(self._folder / name, os.O_RDWR | os.O_CREAT, 0o644)
            self._open.append(file)
            os.posix_fallocate(file, 0, begin + size)  # Raises if the disk is full.
            _write_all(file, header, 0)

    def write(self, key: str, tensor: np.ndarray, index: int | None = None) -> None:
        """Writes a tensor, or its part `index` along the first axis; each part must be written once.

        Raises:
          ValueError: the shape or dtype differs from `entries`.
        """
        entry = self._entries[key]
        shape = entry.shape if index is None else entry.shape[1:]
        if tensor.shape != shape or tensor.dtype != entry.dtype:
            raise ValueError(
                f"{key} is {tensor.dtype} {list(tensor.shape)}; expected {entry.dtype} {list(shape)}"
            )
        file, position = self._where[key]
        position += 0 if index is None else index * tensor.nbytes
        data = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
        _write_all(self._open[file], data.data, position)
        self._missing[key] -= tensor.nbytes

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._clear()

    def _finish(self) -> None:
        unwritten = [key for key, missing in self._missing.items() if missing]
        if unwritten:
            raise ValueError(f"{len(unwritten)} tensors were not written: {', '.join(unwritten)}")
        for file in self._open:
            os.fsync(file)
        if self._single:
            if self._renames:
                os.replace(self._folder / self.path.name, self.path)
            else:
                _copy(self._folder / self.path.name, self.path)
            return
        if len(self._files) > 1:
            weight_map = {key: name for name, keys in self._files.items() for key in keys}
            total = sum(entry.nbytes for entry in self._entries.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            self._extra[f"{self._name}.safetensors{INDEX_SUFFIX}"] = json.dumps(index, indent=2)
        for name, text in self._extra.items():
            (self._folder / name).write_text(text)
        if self.path.exists():
            shutil.rmtree(self.path)  # It may be replaced, as checked in `__init__`.
        if not self._renames:
            self._copy_folder()
            return
        self._folder.chmod(0o755)
        os.rename(self._folder, self.path)

    def _copy_folder(self) -> None:
        self.path.mkdir()
        (self.path / UNFINISHED).write_text("a conversion copies its files to this folder\n")
        for file in sorted(self._folder.iterdir()):
            _copy(file, self.path / file.name)
        (self.path / UNFINISHED).unlink()

    def _clear(self) -> None:
        for file in self._open:
            os.close(file)
        self._open = []
        shutil.rmtree(self._folder, ignore_errors=True)


def _may_be_replaced(path: Path) -> bool:
    """Whether a folder is empty, or what an interrupted conversion has left."""
    return path.is_dir() and (not any(path.iterdir()) or (path / UNFINISHED).exists())


def _copy(source: Path, target: Path) -> None:
    """Copies a file; a killed process leaves no part of it under its final name."""
    with atomic_file(target) as scratch:
        shutil.copyfile(source, scratch)


def _write_all(file: int, data: bytes | memoryview, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, position)
        view, position = view[written:], position + written
