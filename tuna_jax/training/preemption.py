"""Turns SIGTERM and Ctrl-C into a flag that a loop checks between two steps.

All processes of a run must stop at the same step, since a save requires all of them.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

import jax

from tuna_jax.parallel import distributed


class StopRequest:
    """Context manager: inside it, SIGTERM and SIGINT set `requested` instead of ending the process.

    A second signal of the same kind ends the process immediately, without a save. Signals reach only the main thread of
    a process; in other threads this context does nothing.

    With several processes, JAX handles SIGTERM and informs the other processes (`distributed.stop_together`), and
    SIGINT is turned into SIGTERM. Further signals change nothing, since no process can end without the others.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            if jax.process_count() > 1:
                self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, _as_sigterm)
                return self
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def agreed(self, step: int) -> bool:
        """Whether to save and stop after this step, equal in all processes. It must be called after every step."""
        return self.requested or distributed.stop_together(step)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.requested = True
        signal.signal(number, self._previous[number])  # type: ignore[arg-type]


def _as_sigterm(number: int, frame: FrameType | None) -> None:
    del number, frame
    os.kill(os.getpid(), signal.SIGTERM)
