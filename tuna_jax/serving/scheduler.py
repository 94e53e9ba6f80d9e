"""The scheduler: one thread that owns the device, and takes turns between answers, images and clips.

A turn is one call: some tokens of all answers, or one evaluation of the velocity of all images, or of all clips, of one
shape. So an answer waits for one evaluation of a clip, never for a clip. Results join those under way at the next turn.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterator, Sequence

from tuna_jax.inference import batching
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.serving import text_pool
from tuna_jax.serving.metrics import Metrics
from tuna_jax.serving.picture_pool import PicturePool
from tuna_jax.serving.rows import PictureRow, Row, TextRow
from tuna_jax.serving.served import Served
from tuna_jax.serving.text_pool import TextPool

_log = logging.getLogger(__name__)
_PATIENCE = 0.5  # Seconds between two looks at the deadlines of an idle scheduler.


class QueueFullError(Exception):
    """No more results may wait.

    Attributes:
      seconds: after which there is probably room.
    """

    def __init__(self, seconds: int):
        super().__init__(f"the queue is full; try again in {seconds} seconds")
        self.seconds = seconds


class StoppingError(Exception):
    """The server takes no new requests."""


class Scheduler:
    """Runs rows on the device.

    Attributes:
      model, served: what is served.
      ready: everything is compiled, and the thread takes rows.
      error: why compiling failed.
    """

    def __init__(self, model: Tuna, served: Served, metrics: Metrics):
        self.model, self.served, self.metrics = model, served, metrics
        self.texts = text_pool.pools(model, served, metrics) if "chat" in served.tasks else []
        shapes: list[tuple[int, int, int]] = []
        if "image" in served.tasks:
            shapes += [(1, *size) for size in served.sizes]
        if "edit" in served.tasks:
            shapes += [(1, *size) for size in served.edit_sizes]
        if "video" in served.tasks:
            shapes += [(count, *size) for size in served.sizes for count in served.frames]
        self.pictures = {
            shape: PicturePool(model, served, shape, metrics) for shape in dict.fromkeys(shapes)
        }
        self._wake = threading.Condition()
        self._incoming: list[Row] = []  # Only the device's thread touches the pools.
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._paused = False
        self.ready = False
        self.error: Exception | None = None
        self._mean = 1.0  # Seconds between two results, a running mean.
        self._turns = itertools.cycle(list(self.pictures.values()))
        active = {"text": lambda: sum(pool.active for pool in self.texts)} if self.texts else {}
        for kind in ("image", "video"):
            active[kind] = lambda kind=kind: sum(
                pool.active for pool in self.pictures.values() if pool.kind == kind
            )
        metrics.watch(lambda: self.waiting, active)

    def _pools(self) -> list[TextPool | PicturePool]:
        return [*self.texts, *self.pictures.values()]

    @property
    def waiting(self) -> int:
        """Number of rows that wait for a slot."""
        return len(self._incoming) + sum(len(pool.waiting) for pool in self._pools())

    @property
    def idle(self) -> bool:
        """Whether no row waits or has a slot."""
        return not self._incoming and not any(pool.busy for pool in self._pools())

    def start(self) -> None:
        """Starts the thread, which compiles everything and is then ready, or has an `error`."""
        self._thread = threading.Thread(target=self._main, name="device", daemon=True)
        self._thread.start()

    def _main(self) -> None:
        try:
            batching.key_data(0, 0)
            for pool in self._pools():
                if self._stopping:
                    return
                pool.warm_up()
        except Exception as error:
            self.error = error
            return
        self.metrics.counts_compiles = True
        self.ready = True
        self._run()

    def submit(self, rows: Sequence[Row]) -> None:
        """Queues the rows of a request, all or none.

        Raises:
          QueueFullError: more results than the limit would wait.
          StoppingError: the server is about to end.
        """
        with self._wake:
            if self._stopping or not self.ready:
                raise StoppingError
            if self.waiting + len(rows) > self.served.settings.queue:
                # An empty queue that is too short for the request stays so; asking for less helps.
                raise QueueFullError(max(1, min(60, round(self.waiting * self._mean))))
            self._incoming += rows
            self._wake.notify()

    def _sort(self) -> None:
        """Moves new rows to their pools; the lock is held."""
        for row in self._incoming:
            if isinstance(row, TextRow):
                next(pool for pool in self.texts if pool.fits(row)).waiting.append(row)
            elif isinstance(row, PictureRow):
                self.pictures[row.shape].waiting.append(row)
        self._incoming.clear()

    def stop(self, drain: float = 0.0) -> None:
        """Takes no new rows, and ends the thread when the others are done, or after `drain` seconds."""
        with self._wake:
            self._stopping = True
            self._drain_until = time.monotonic() + drain
            self._wake.notify()
        # A thread that compiles ends with the process.
        if self._thread is not None and self.ready:
            self._thread.join(drain + 60.0)

    def pause(self, paused: bool) -> None:
        """Makes no turns while paused; for tests that need a full queue."""
        with self._wake:
            self._paused = paused
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                while (self.idle or self._paused) and not self._stopping:
                    self._wake.wait(_PATIENCE)
                    self._sort()
                    self._expire()
                if self._stopping and (self.idle or time.monotonic() > self._drain_until):
                    break
                self._sort()
                self._expire()
            for pool in self._turn():
                self._step(pool)
        with self._wake:
            self._sort()
        for row in self._all_rows():
            row.fail("shutdown", "the server was stopped before the request was done")
        for pool in self._pools():
            pool.waiting.clear()
            pool.reset()
        self.ready = False

    def _turn(self) -> Iterator[TextPool | PicturePool]:
        """The pools whose turn it is: all answers, and the next images or clips."""
        yield from (pool for pool in self.texts if pool.busy)
        for _ in self.pictures:
            pool = next(self._turns)
            if pool.busy:
                yield pool
                return

    def _step(self, pool: TextPool | PicturePool) -> None:
        before = pool.active + len(pool.waiting)
        start = time.monotonic()
        try:
            pool.step()
        except Exception as error:
            # Whatever it is, it ends these rows and not the server. Its message may have arrays, but no texts.
            _log.exception("a step failed; its %d rows have no result", pool.active)
            for row in pool.rows():
                row.fail("internal", f"the server failed on this request ({type(error).__name__})")
            pool.reset()
        ended = before - pool.active - len(pool.waiting)
        if ended > 0:
            self._mean += 0.1 * ((time.monotonic() - start) / ended - self._mean)

    def _all_rows(self) -> list[Row]:
        return [row for pool in self._pools() for row in [*pool.waiting, *pool.rows()]]

    def _expire(self) -> None:
        """Gives up rows whose time is over, and forgets waiting rows that nobody waits for."""
        now = time.monotonic()
        for row in self._all_rows():
            if now > row.deadline and not row.cancelled:
                seconds = self.served.settings.deadline
                row.fail("timeout", f"the request took longer than {seconds:g} seconds")
                row.cancelled = True
        for pool in self._pools():
            if any(row.cancelled for row in pool.waiting):
                kept = [row for row in pool.waiting if not row.cancelled]
                pool.waiting.clear()
                pool.waiting.extend(kept)  # pyright: ignore[reportArgumentType]
