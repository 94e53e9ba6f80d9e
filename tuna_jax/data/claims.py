"""Who works on which part of a work that processes and hosts divide among them in a folder that all of them see.

A claim is a small file. Its owner renews it while it works; if it was not renewed for a while, by the clock of the
process that looks, or if its process was on this host and is gone, the part may be taken over. File systems differ in
what they promise, so that two may work on a part for a moment: the work must be such that doing a part twice changes
nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from pathlib import Path

from tuna_jax.utils.atomic_io import atomic_file

STALE = 60.0
"""Seconds after which a claim that is not renewed is taken over."""


class Claims:
    """The claims of this process on parts of a work.

    Args:
        folder: of the claims; it is made if it does not exist.
        stale: seconds after which a claim that is not renewed is taken over.
    """

    def __init__(self, folder: Path, stale: float = STALE):
        self.folder, self._stale = folder, stale
        self._place = _place()
        self._owner = {"place": self._place, "process": os.getpid(), "id": uuid.uuid4().hex[:12]}
        self._renewed: dict[str, tuple[float, int]] = {}  # Own part -> when, and how often.
        self._seen: dict[str, tuple[str, float]] = {}  # Another's part -> its text, since when.

    def take(self, part: str) -> bool:
        """Claims a part if nobody works on it; whether this process has it now."""
        path = self._path(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(self._text(0))
        except FileExistsError:
            if not self._is_abandoned(path, part):
                return False
            self._write(part, 0)
        self._renewed[part] = time.monotonic(), 0
        return True

    def renew(self, part: str) -> None:
        """Says that this process still works on a part; cheap if it said so a moment ago."""
        when, times = self._renewed[part]
        if time.monotonic() - when < self._stale / 6:
            return
        if self._path(
            part
        ).exists():  # Otherwise another one did the part, and the work is finished.
            self._write(part, times + 1)
        self._renewed[part] = time.monotonic(), times + 1

    def release(self, part: str) -> None:
        """Gives a part up, because it is done or has failed."""
        self._renewed.pop(part, None)
        with contextlib.suppress(OSError):
            self._path(part).unlink()

    def _is_abandoned(self, path: Path, part: str) -> bool:
        try:
            text = path.read_bytes().decode("utf-8", "replace")
        except FileNotFoundError:
            return False  # It was released: the part is done, or free at the next look.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            owner = json.loads(text)
            if owner["place"] == self._place and not _is_running(int(owner["process"])):
                return True
        now = time.monotonic()
        if part not in self._seen or self._seen[part][0] != text:
            self._seen[part] = text, now
        return now - self._seen[part][1] >= self._stale

    def _write(self, part: str, times: int) -> None:
        with atomic_file(self._path(part)) as scratch:
            scratch.write_text(self._text(times), encoding="utf-8")

    def _text(self, times: int) -> str:
        return json.dumps({**self._owner, "renewed": times})

    def _path(self, part: str) -> Path:
        return self.folder / f"{part}.claim"


def _place() -> str:
    """Where the numbers of processes mean the same: this host, and within it this container."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{socket.gethostname()} {space}"


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # It is another user's.
    try:  # A process that was killed and not waited for is still listed.
        with Path(f"/proc/{process}/stat").open("rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return True
