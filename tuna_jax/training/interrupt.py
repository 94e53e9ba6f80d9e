"""Turns SIGTERM and Ctrl-C into a question that a loop asks between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopRequest:
    """Context manager: inside it, SIGTERM and SIGINT set `requested` instead of ending the process.

    A second signal of the same kind ends the process at once, for whoever does not want to wait for
    a save. Signals reach a process's main thread alone; elsewhere (in a test's worker thread) this
    does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.requested = True
        signal.signal(number, self._previous[number])  # type: ignore[arg-type]
