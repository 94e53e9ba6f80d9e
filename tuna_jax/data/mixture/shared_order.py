"""Shuffled orders of large buckets, made once per host and mapped by all of its processes.

An order of a hundred million examples takes seconds to make and 400 MB: each worker would have its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int

from tuna_jax.data.sources.stored_index import find, path_of, write

_OLD = (
    2 * 86_400.0
)  # Seconds after which an order is removed; processes that have mapped it keep it.


def shared_order(
    folder: Path,
    key: tuple[int, ...],
    epoch: int,
    count: int,
    make: Callable[[], Int[np.ndarray, " members"]],
) -> Int[np.ndarray, " members"]:
    """The order of a bucket in an epoch, int32: mapped from a file, which is made if it is not there.

    Args:
        folder: of orders, on a disk of this host.
        key: seeds the bucket's orders; together with the epoch and their length it determines them.
        epoch: its number.
        count: the length.
        make: makes the order.
    """
    # Of another release of NumPy, an order may be another one.
    about = {"key": list(key), "epoch": epoch, "count": count, "numpy": np.__version__}
    with _locked(folder):
        kept = None
        with contextlib.suppress(ValueError):  # A damaged file is written again.
            kept = find(folder, "order", about)
        if kept is None:
            _remove_old(folder, path_of(folder, "order", about))
            order = make()
            try:
                kept = write(folder, "order", about, {"order": order})
            except OSError:  # No space: this process has its own copy.
                return order
    return kept["order"]


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Only one process of a host makes an order at a time; the others wait and then map it."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # The file system has no locks, or cannot be written.
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder / "orders.lock").open("a"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_old(folder: Path, kept: Path) -> None:
    for path in folder.glob("order-*.safetensors"):
        with contextlib.suppress(OSError):
            if path != kept and time.time() - path.stat().st_mtime > _OLD:
                path.unlink()
