"""The reader of a folder that another process writes: it answers requests, so that the writer learns what others see.

`python -m tuna_jax.diagnostics.reader FOLDER` reads requests from standard input and writes answers to standard output,
one JSON object per line.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from typing import Any

from tuna_jax.diagnostics.files import Files, open_files

_POLL = 0.02


def digest(content: bytes) -> str:
    """What tells two contents apart."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


class Reader:
    """Answers requests about files; `answer` has one method of this class per request."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._watcher: threading.Thread | None = None
        self._seen: dict[str, Any] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request `{'do': NAME, ...arguments}`; errors are answers, too."""
        arguments = dict(request)
        method = getattr(self, arguments.pop("do"))
        try:
            return method(**arguments)
        except OSError as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def look(self, names: list[str]) -> dict[str, Any]:
        """Asks for names, and for the list of all, before they exist: that fills caches of what is not there."""
        return {"exists": [self._files.exists(name) for name in names], "listed": self._list()}

    def expect(
        self, name: str, content: str, seconds: float, gone: str | None = None
    ) -> dict[str, Any]:
        """Waits until a file is listed and has this content, and another name is gone.

        Returns:
          Seconds until each was so ('listed', 'read', 'gone'), None where it was not after `seconds`.
        """
        begun = time.monotonic()
        times: dict[str, float | None] = {"listed": None, "read": None, "gone": None}
        while True:
            listed = self._list()
            now = {
                "listed": name in listed,
                "read": self._content(name) == content,
                "gone": gone is None or (gone not in listed and not self._files.exists(gone)),
            }
            for key, is_so in now.items():
                if times[key] is None and is_so:
                    times[key] = time.monotonic() - begun
            if None not in times.values() or time.monotonic() - begun > seconds:
                return times
            time.sleep(_POLL)

    def watch(self, folder: str, seconds: float) -> dict[str, Any]:
        """Begins to wait, in a thread, for a folder to appear under its final name."""
        self._seen = {"entries": None}

        def wait() -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                try:
                    entries = len(self._files.names(folder))
                except OSError:
                    entries = 0
                if entries:
                    self._seen["entries"] = entries
                    return
                time.sleep(0.001)

        self._watcher = threading.Thread(target=wait, daemon=True)
        self._watcher.start()
        return {}

    def watched(self) -> dict[str, Any]:
        """How many entries the folder had when it was first seen; None: it was not seen."""
        if self._watcher is not None:
            self._watcher.join()
        return self._seen

    def rate(self, name: str, content: str) -> dict[str, Any]:
        """Reads a large file: bytes per second, and whether the content is right."""
        self._files.forget(name)
        begun = time.monotonic()
        read = self._files.read(name)
        seconds = time.monotonic() - begun
        return {"rate": len(read) / max(seconds, 1e-9), "equal": digest(read) == content}

    def _list(self) -> list[str]:
        try:
            return self._files.names()
        except FileNotFoundError:
            return []

    def _content(self, name: str) -> str | None:
        try:
            return digest(self._files.read(name))
        except FileNotFoundError:
            return None


def main(folder: str) -> None:
    """Answers requests until standard input ends."""
    reader = Reader(open_files(folder))
    for line in sys.stdin:
        print(json.dumps(reader.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
