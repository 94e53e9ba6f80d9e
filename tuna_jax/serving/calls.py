"""A request's rows from the HTTP side: queued together, awaited, and cancelled when nobody waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Request

from tuna_jax.serving import errors
from tuna_jax.serving.rows import LAST, Event, Failed, Row
from tuna_jax.serving.scheduler import QueueFullError, Scheduler, StoppingError

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client has hung up: there is nobody to answer."""


class Call:
    """The rows of one request.

        async with Call(scheduler, rows, request) as call:
            async for index, event in call.events():
                ...

    Leaving the block cancels what is not done, and so does a client that hangs up.

    Args:
      scheduler: where the rows run.
      rows: the requested results.
      request: whose client is watched; None: nobody's, as of a job.
    """

    def __init__(self, scheduler: Scheduler, rows: Sequence[Row], request: Request | None = None):
        self._scheduler, self.rows, self._request = scheduler, rows, request
        self._events: asyncio.Queue[tuple[int, Event | None]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._watcher: asyncio.Task[None] | None = None
        deadline = time.monotonic() + scheduler.served.settings.deadline
        for index, row in enumerate(rows):
            row.emit = functools.partial(self._post, index)
            row.deadline = min(row.deadline, deadline)

    def _post(self, index: int, event: Event) -> None:
        # The loop is closed if the server ends while a row does.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    async def __aenter__(self) -> Call:
        try:
            self._scheduler.submit(self.rows)
        except QueueFullError as full:
            headers = {"Retry-After": str(full.seconds)}
            raise errors.ApiError(429, str(full), None, "queue_full", headers) from None
        except StoppingError:
            raise not_ready() from None
        if self._request is not None:
            self._watcher = asyncio.create_task(self._watch(self._request))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    def cancel(self) -> None:
        """Gives up the rows; their slots are free when the step under way has ended."""
        for row in self.rows:
            row.cancelled = True

    async def _watch(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.cancel()
        self._events.put_nowait((-1, None))

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """(index of a row, event), until all rows have ended.

        Raises:
          ApiError: a row has no result.
          ClientGoneError: the client has hung up.
        """
        left = len(self.rows)
        while left:
            index, event = await self._events.get()
            if event is None:
                raise ClientGoneError
            if isinstance(event, Failed):
                raise errors.of_row(event)
            yield index, event
            left -= isinstance(event, LAST)

    async def results(self) -> list[Any]:
        """The last event of each row; the errors are those of `events`."""
        results: list[Any] = [None] * len(self.rows)
        async for index, event in self.events():
            if isinstance(event, LAST):
                results[index] = event
        return results


def not_ready() -> errors.ApiError:
    """The error while the server starts or ends."""
    headers = {"Retry-After": "5"}
    return errors.ApiError(503, "the server is not ready", None, "not_ready", headers)


async def in_thread(threads: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> T:
    """Runs a function that decodes, encodes or tokenizes, outside the event loop."""
    return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)
