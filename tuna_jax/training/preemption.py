"""Turns SIGTERM and Ctrl-C into a question that a loop asks between two steps.

Several processes of one run have to answer it alike, at the same step: a save needs them all.
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

    A second signal of the same kind ends the process at once, for whoever does not want to wait for
    a save. Signals reach a process's main thread alone; elsewhere (in a test's worker thread) this
    does nothing.

    Beside other processes SIGTERM is left to JAX, which tells the others (`processes.stop_together`), and SIGINT is
    turned into it; further ones change nothing, for none can end without the others.
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
        """Whether to save and end after this step: the same answer in all processes. To be asked after every step."""
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
