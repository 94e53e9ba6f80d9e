"""Threads that compile further batch shapes while the first steps run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor


def number(setting: int, backend: str) -> int:
    """Number of threads of `LoopSettings.compile_threads`, on this machine."""
    if setting >= 0:
        return setting
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 0 if backend == "gpu" else min(4, (cores or 1) // 8)


@contextlib.contextmanager
def pool(threads: int) -> Iterator[ThreadPoolExecutor | None]:
    """Threads that compile; what has not begun at the end is dropped."""
    if not threads:
        yield None
        return
    executor = ThreadPoolExecutor(threads, thread_name_prefix="compile")
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)
