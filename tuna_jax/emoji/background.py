"""Makes the next batches while the accelerator works on this one."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def ahead(
    make: Callable[[int], Item], start: int, stop: int, *, depth: int = 2, threads: int = 1
) -> Iterator[Item]:
    """Yields `make(start), make(start + 1), ... make(stop - 1)` in order, up to `depth` of them
    made ahead of time.

    `make` must depend on its argument alone: then the position of a run is its step, and nothing of
    this needs saving. An error in `make` is raised where its item was due.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        waiting = collections.deque(
            pool.submit(make, index) for index in range(start, min(start + depth, stop))
        )
        try:
            for index in range(start, stop):
                item = waiting.popleft().result()
                if index + depth < stop:
                    waiting.append(pool.submit(make, index + depth))
                yield item
        finally:
            for future in waiting:
                future.cancel()
