"""A bounded pool of open files: thousands of shards, a few of them open at a time."""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

Reader = TypeVar("Reader")

MOST_OPEN = 64
"""Files of one source that a process has open. Linux allows 1,024 of a process in all."""


class ReaderPool(Generic[Reader]):
    """Opens readers on demand and closes the one that was unused for longest; safe from several threads.

    A pool is pickled without its readers: a worker process opens its own.

    Args:
        open_reader: makes the reader of a key.
        close: ends one.
        most: readers that are open at the same time; more only while more are in use.
    """

    def __init__(
        self,
        open_reader: Callable[[Any], Reader],
        close: Callable[[Reader], Any],
        most: int = MOST_OPEN,
    ):
        self._open, self._close, self._most = open_reader, close, most
        self._start()

    def _start(self) -> None:
        self._idle: collections.OrderedDict[Hashable, Reader] = collections.OrderedDict()
        self._used: dict[Hashable, list[Any]] = {}  # Key -> [reader, users].
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def use(self, key: Hashable) -> Iterator[Reader]:
        """The reader of a key, which stays open within."""
        with self._lock:
            if key in self._used:
                self._used[key][1] += 1
            else:
                reader = self._idle.pop(key) if key in self._idle else self._opened(key)
                self._used[key] = [reader, 1]
            reader = self._used[key][0]
        try:
            yield reader
        finally:
            with self._lock:
                self._used[key][1] -= 1
                if not self._used[key][1]:
                    self._idle[key] = self._used.pop(key)[0]
                    self._make_room(0)

    def _opened(self, key: Hashable) -> Reader:
        self._make_room(1)
        return self._open(key)

    def _make_room(self, coming: int) -> None:
        while self._idle and len(self._idle) + len(self._used) + coming > self._most:
            self._close(self._idle.popitem(last=False)[1])

    def __len__(self) -> int:
        """The number of readers that are open."""
        return len(self._idle) + len(self._used)

    def __getstate__(self) -> dict[str, Any]:
        return {"_open": self._open, "_close": self._close, "_most": self._most}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __del__(self) -> None:
        for reader in getattr(self, "_idle", {}).values():
            with contextlib.suppress(Exception):
                self._close(reader)


def open_descriptor(path: str | Path) -> int:
    """A file's descriptor, for `os.pread`."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))


def close_reader(reader: Any) -> None:
    """Closes a reader that has a method `close`."""
    reader.close()
