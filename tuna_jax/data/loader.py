"""The iterator over a run's batches, which are prepared ahead in threads or worker processes.

Its state is only the number of the next batch, so a state saved with any number of threads and workers resumes with any
other: batches that were prepared ahead are discarded and prepared again.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import grain
import numpy as np
from absl import flags

from tuna_jax.compat import grain_internals
from tuna_jax.data import shared_memory

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Batches:
    """A data set whose elements pass through the main process, in order, before they become batches.

    Attributes:
        dataset: prepares element n, the same in every process.
        receive: turns an element into its batch; called once per element, in order.
    """

    dataset: grain.MapDataset[Any]
    receive: Callable[[Any], Batch]


class BatchIterator(grain.DatasetIterator[Batch]):
    """Batches in order; see `iterate`. Close it when it is no longer needed, or worker processes remain."""

    def __init__(
        self, source: grain.MapDataset[Batch] | Batches, threads: int, ahead: int, workers: int
    ):
        super().__init__()
        self._running: grain.DatasetIterator[Any] | None = None
        if threads < 1 or ahead < 1 or workers < 0:
            raise ValueError(
                f"threads={threads}, ahead={ahead}, workers={workers}: they must be at least 1, 1 and 0"
            )
        self._source = source if isinstance(source, Batches) else Batches(source, _identity)
        self._threads, self._ahead, self._workers = threads, ahead, workers
        self._next = 0

    def _start(self) -> grain.DatasetIterator[Any]:
        """Grain's iterator, beginning at the next batch."""
        if self._closed:
            raise ValueError("the iterator is closed")
        if self._running is None:
            # Grain's defaults (16 threads, 500 elements ahead) would take the cores from the training step.
            options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._ahead)
            if self._workers:
                if not flags.FLAGS.is_parsed():
                    flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, which users of the library may not parse.
                each = -(-self._ahead // self._workers)
                options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=each)
                rest = grain.MapDataset.source(_Remaining(self._source.dataset, self._next))
                prepared = grain_internals.with_shared_memory_from(
                    rest.to_iter_dataset(options), shared_memory.SHARED_BYTES
                )
                shared = grain.MultiprocessingOptions(num_workers=self._workers)
                self._running = iter(prepared.mp_prefetch(shared, worker_init_fn=_begin_worker))
            else:
                rest = self._source.dataset.slice(slice(self._next, None))
                self._running = iter(rest.to_iter_dataset(options))
        return self._running

    def __next__(self) -> Batch:
        element = next(self._start())
        if isinstance(element, _Failed):
            self._stop()
            raise element.error
        self._next += 1
        return self._source.receive(element)

    def get_state(self) -> dict[str, Any]:
        """The number of the next batch."""
        return {"next_index": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues at a batch; batches prepared ahead are discarded."""
        self._stop()
        self._next = int(state["next_index"])

    def start_prefetch(self) -> None:
        """Starts to prepare batches (Orbax's handler calls it after a restore)."""
        self._start().start_prefetch()

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None

    def close(self) -> None:
        """Ends threads and workers."""
        self._stop()
        self._closed = True


def _identity(batch: Batch) -> Batch:
    return batch


def _begin_worker(number: int, count: int) -> None:
    """Initializes a worker process: it does not use the accelerator, and ends with its run."""
    del number, count
    shared_memory.this_is_a_worker()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if "jax" in sys.modules:  # The command's own module is imported before this.
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    # The run decides when it stops: it saves first, and needs batches until then.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)  # The run was killed: nobody waits for this worker.

    threading.Thread(target=follow, daemon=True, name="follow-the-run").start()


class WorkerError(RuntimeError):
    """An error of a worker that cannot be pickled itself."""


@dataclasses.dataclass(frozen=True)
class _Failed:
    error: Exception


class _Remaining:
    """The elements of a data set from a position on, as a source for workers; errors are elements, too."""

    def __init__(self, dataset: grain.MapDataset[Any], begin: int):
        self._dataset, self._begin = dataset, begin

    def __len__(self) -> int:
        return len(self._dataset) - self._begin

    def __getitem__(self, index: int) -> Any:
        try:
            return self._dataset[self._begin + index]
        except Exception as error:  # The main process raises it.
            return _Failed(portable(error))


def portable(error: Exception) -> Exception:
    """The error if it can be pickled, else a WorkerError with its message; the traceback is attached as a note."""
    traced = "".join(traceback.format_exception(error))
    try:
        readable = str(pickle.loads(pickle.dumps(error))) == str(error)
    except Exception:  # An error's own constructor may raise anything.
        readable = False
    sent = error if readable else WorkerError(f"{type(error).__name__}: {error}")
    sent.add_note(f"In a worker process:\n{traced}")
    return sent


def iterate(
    dataset: grain.MapDataset[Batch] | Batches,
    *,
    threads: int = 2,
    ahead: int = 8,
    workers: int = 0,
) -> BatchIterator:
    """A Grain iterator that prepares batches ahead; it has `get_state`, `set_state` and `close`.

    Batches, order and state (the next batch's number) do not depend on threads and workers: a run may resume with other
    numbers of them.

    Args:
        dataset: the batches by number.
        threads: in each process that prepares batches.
        ahead: batches that are prepared ahead, by all workers together; each worker holds one or two more.
        workers: processes that prepare batches; 0 prepares them in this process, which suits files whose decoders
            release Python's lock. Workers start in 3 to 7 seconds, require `if __name__ == "__main__":` in a script,
            and pass arrays through shared memory (/dev/shm), which must hold the batches ahead.

    Raises:
        ValueError: fewer than one thread or batch ahead, or a negative number of workers.
    """
    return BatchIterator(dataset, threads, ahead, workers)
