"""The processes of a launch: what each says is known to all. No device takes part, since devices are under test."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import jax

from tuna_jax.compat import jax_internals

_KEY = "tuna_jax/doctor"
_POLL = 1  # Seconds of one wait for a value.
_launches = 0  # Of this class in this process, the same number in all.


class ProcessFailedError(RuntimeError):
    """Another process has failed in the same check, so this one need not wait for it."""


class Processes:
    """This process among those of its launch; a single one has nobody to wait for.

    Attributes:
      count, index: number of processes, and the number of this one.
      names: of all, such as 'process 1 (host-b)'.
    """

    def __init__(self) -> None:
        # Asking JAX itself would start its backend.
        several = jax.distributed.is_initialized()
        self.count = jax.process_count() if several else 1
        self.index = jax.process_index() if several else 0
        global _launches
        _launches += 1
        self._check, self._calls = f"{_launches}/start", 0
        hosts = self.gather(socket.gethostname(), 600)
        self.names = [f"process {index} ({host})" for index, host in enumerate(hosts)]

    def begin(self, check: str) -> None:
        """Begins a check: errors of earlier ones do not count any more. All processes call it."""
        self._check, self._calls = f"{_launches}/{check}", 0

    def gather(self, value: Any, seconds: float = 900) -> list[Any]:
        """The JSON values of all processes, in their order. All call it, equally often in each check.

        Raises:
          ProcessFailedError: another process has called `failed` in this check.
          TimeoutError: a process has not called this within `seconds`; the message names it.
        """
        if self.count == 1:
            return [json.loads(json.dumps(value))]
        self._calls += 1
        return self._exchange(f"{_KEY}/{self._check}/{self._calls}", value, seconds, heeds=True)

    def failed(self, error: str) -> None:
        """Tells the other processes that this one does not go on with the check."""
        if self.count > 1:
            jax_internals.set_value(f"{self._failures()}{self.index}", error.encode())

    def finish(self, value: Any, seconds: float = 900) -> list[Any]:
        """`gather` at the end of a check, which waits for processes that failed, too."""
        if self.count == 1:
            return [json.loads(json.dumps(value))]
        return self._exchange(f"{_KEY}/{self._check}/end", value, seconds, heeds=False)

    def failures(self) -> list[str]:
        """Errors of this check on other processes so far."""
        if self.count == 1:
            return []
        return [text.decode() for text in jax_internals.values_under(self._failures())]

    def _failures(self) -> str:
        return f"{_KEY}/{self._check}/failed/"

    def _exchange(self, key: str, value: Any, seconds: float, heeds: bool) -> list[Any]:
        jax_internals.set_value(f"{key}/{self.index}", json.dumps(value).encode())
        end = time.monotonic() + seconds
        values = []
        for process in range(self.count):
            while (text := jax_internals.wait_for_value(f"{key}/{process}", _POLL)) is None:
                if heeds and (failed := self.failures()):
                    raise ProcessFailedError(failed[0])
                if time.monotonic() > end:
                    raise TimeoutError(
                        f"process {process} has not come so far within {seconds:.0f} seconds"
                    )
            values.append(json.loads(text))
        return values
