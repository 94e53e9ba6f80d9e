"""Items prepared in the background by Grain, for data whose position is just a number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import grain

Item = TypeVar("Item")


def prefetch(
    make: Callable[[int], Item], start: int, stop: int, *, depth: int = 2, threads: int = 1
) -> Iterator[Item]:
    """Yields `make(start), ..., make(stop - 1)` in order, preparing up to `depth` items in background threads.

    `make` must depend only on its argument; then the position of a run is its step, and no iterator state is saved. An
    error in `make` is raised when its item is due.
    """
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=depth)
    return iter(grain.MapDataset.range(start, stop).map(make).to_iter_dataset(options))
