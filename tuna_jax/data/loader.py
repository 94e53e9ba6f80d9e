"""The iterator that a run takes its batches from: prepared ahead, in threads or in worker processes.

Its state is the number of the next batch and nothing else, so that a state saved with any number of threads and
workers resumes with any other: whatever was prepared ahead is thrown away and prepared anew.
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
    """A data set whose elements are looked at in the main process, when their turn comes, before they are batches.

    Attributes:
        dataset: prepares element n, the same in every process.
        receive: makes the batch of an element; it is called once an element, in order.
    """

    dataset: grain.MapDataset[Any]
    receive: Callable[[Any], Batch]


class BatchIterator(grain.DatasetIterator[Batch]):
    """Batches in order; see `pipeline.iterate`. Close it when it is no longer needed, or workers linger."""

    def __init__(
        self, source: grain.MapDataset[Batch] | Batches, threads: int, ahead: int, workers: int
    ):
        super().__init__()
        self._running: grain.DatasetIterator[Any] | None = None
        if threads < 1 or ahead < 1 or workers < 0:
            raise ValueError(
                f"threads={threads}, ahead={ahead}, workers={workers}: at least 1, 1 and 0 are needed"
            )
        self._source = source if isinstance(source, Batches) else Batches(source, _as_it_is)
        self._threads, self._ahead, self._workers = threads, ahead, workers
        self._next = 0

    def _start(self) -> grain.DatasetIterator[Any]:
        """Grain's iterator from the next batch on."""
        if self._closed:
            raise ValueError("the iterator is closed")
        if self._running is None:
            # Grain's own defaults (16 threads, 500 elements ahead) would take the cores from the step.
            options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._ahead)
            if self._workers:
                if not flags.FLAGS.is_parsed():
                    flags.FLAGS.mark_as_parsed()  # Grain asks absl, which a library's user need not use
                each = -(-self._ahead // self._workers)
                options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=each)
                rest = grain.MapDataset.source(_FromHere(self._source.dataset, self._next))
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
        """Goes to a batch; what was prepared ahead is dropped."""
        self._stop()
        self._next = int(state["next_index"])

    def start_prefetch(self) -> None:
        """Begins to prepare batches (Orbax's handler calls it after a restore)."""
        self._start().start_prefetch()

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None

    def close(self) -> None:
        """Ends threads and workers."""
        self._stop()
        self._closed = True


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _begin_worker(number: int, count: int) -> None:
    """What a worker process does first: it keeps off the accelerator, and ends when its run does."""
    del number, count
    shared_memory.this_is_a_worker()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if "jax" in sys.modules:  # the command's own module is imported before this
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    # The run decides when it stops: it saves first, and wants batches until then.
    for asked in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)  # killed without a farewell: nobody waits for this worker

    threading.Thread(target=follow, daemon=True, name="follow-the-run").start()


class WorkerError(RuntimeError):
    """What a worker raised, where the error itself cannot travel between processes."""


@dataclasses.dataclass(frozen=True)
class _Failed:
    error: Exception


class _FromHere:
    """The elements of a data set from a position on, as a source for workers: errors are elements, in their order."""

    def __init__(self, dataset: grain.MapDataset[Any], begin: int):
        self._dataset, self._begin = dataset, begin

    def __len__(self) -> int:
        return len(self._dataset) - self._begin

    def __getitem__(self, index: int) -> Any:
        try:
            return self._dataset[self._begin + index]
        except Exception as error:  # whatever it is, the main process raises it
            return _Failed(portable(error))


def portable(error: Exception) -> Exception:
    """The error, if another process can read it, else a WorkerError that says the same; its traceback is a note."""
    traced = "".join(traceback.format_exception(error))
    try:
        readable = str(pickle.loads(pickle.dumps(error))) == str(error)
    except Exception:  # an error's own constructor may raise anything
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
    """A Grain iterator that prepares batches ahead; it has `get_state` and `set_state`, and `close`.

    The batches and their order, and the state (the next batch's number), are the same with any threads and workers:
    what one run saved, another resumes with other ones.

    Args:
        dataset: the batches by number.
        threads: in each process that prepares batches.
        ahead: batches that are prepared ahead, of all workers together; a worker holds one or two more.
        workers: processes that prepare batches; 0 prepares them in this process, which suits files whose decoders let
            go of Python's lock. Workers start in 3 to 7 seconds, want `if __name__ == "__main__":` in a script, and
            hand over arrays in shared memory (/dev/shm), which must hold the batches ahead.

    Raises:
        ValueError: fewer than one thread or batch ahead, or a negative number of workers.
    """
    return BatchIterator(dataset, threads, ahead, workers)
