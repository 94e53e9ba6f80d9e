"""Several processes of one run: joining, stopping at the same step, agreeing, and arrays that lie on all of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from tuna_jax.compat import jax_internals
from tuna_jax.parallel import environment, param_sharding


def initialize(variables: Mapping[str, str] | None = None) -> None:
    """Joins this process to the others of its run; does nothing for a single process. Call it before anything else of
    JAX.

    Afterwards JAX handles SIGTERM: `stop_together` says when to save.

    Args:
      variables: those of `parallel/environment.py`; None: this process's environment.

    Raises:
      ValueError: one of the three variables is missing or wrong; the message names it.
    """
    initialize_arguments = environment.arguments(os.environ if variables is None else variables)
    if initialize_arguments is None or jax.distributed.is_initialized():
        return
    # Only the CPU needs it; other platforms have their own collectives.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(**initialize_arguments)


def wait_for_all(seconds: int = 1800) -> None:
    """Blocks until every process has called this. All must call it, equally often.

    It is not a collective of the devices: those give up after 30 seconds on CPU, and one process may compile or read
    files for longer than another.

    Raises:
      RuntimeError: a process did not arrive within `seconds`.
    """
    global _barriers
    if jax.process_count() == 1:
        return
    _barriers += 1
    jax_internals.barrier(f"tuna_jax_{_barriers}", seconds)


_barriers = 0


def stop_together(step: int) -> bool:
    """Whether all processes must save after this step and end, because one of them received SIGTERM.

    The signal is distributed in the background; the answer is true once, at the same step on all processes. Every
    process calls this after every step, with the same numbers; it costs no communication.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


def all_agree(mine: bool) -> bool:
    """Whether `mine` is true on every process. All must call it."""
    if jax.process_count() == 1:
        return mine
    wait_for_all()
    return bool(np.all(multihost_utils.process_allgather(np.array(mine))))


def from_first(numbers: list[int], most: int = 64) -> list[int]:
    """The first process's list of steps, on all processes: on a shared file system they may see different ones.

    All must call it. The last `most` entries are kept.
    """
    if jax.process_count() == 1:
        return numbers
    wait_for_all()
    padded = np.full(most, -1, np.int32)
    kept = numbers[-most:]
    padded[: len(kept)] = kept
    return [int(n) for n in multihost_utils.broadcast_one_to_all(padded) if n >= 0]


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A tree of arrays, equal on all processes, whole on every device of a mesh."""
    sharding = param_sharding.replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
            return leaf
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree)


def to_host(array: Any) -> np.ndarray:
    """The whole of an array in this process's host memory. All processes that hold a part of it must call it."""
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def end(message: str, status: int = 1) -> NoReturn:
    """Ends the program with an error message and an exit status.

    With other processes it ends at once: an ordinary exit would wait for them while they wait for this one. When
    process 0, the coordinator, ends, so do the others; the launcher handles the rest.
    """
    print(message, file=sys.stderr, flush=True)
    if jax.process_count() == 1:
        sys.exit(status)
    sys.stdout.flush()
    os._exit(status)


class BatchPart(NamedTuple):
    """The part of every batch that a process reads: the `index`-th of `count`."""

    index: int = 0
    count: int = 1


WHOLE = BatchPart()


def batch_part(mesh: Mesh) -> BatchPart:
    """The part of every batch that this process reads.

    Processes whose devices hold the same rows, because `context` or `tensor` crosses hosts, read the same part.

    Raises:
      ValueError: the devices of two processes share some of their rows and not all.
    """
    processes = jax.process_count()
    if processes == 1:
        return WHOLE
    split = param_sharding.batch_sharding(mesh)
    rows = mesh.devices.size
    rows_of: dict[int, frozenset[int]] = {process: frozenset() for process in range(processes)}
    for device, (part,) in split.devices_indices_map((rows,)).items():
        own = range(*part.indices(rows))
        rows_of[device.process_index] |= frozenset(own)
    parts = list(dict.fromkeys(rows_of[process] for process in range(processes)))
    if any(len(part) * len(parts) != rows for part in parts):
        axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        raise ValueError(
            f"on the mesh {axes}, the devices of two of {processes} processes share some rows of a batch and not all, "
            f"but a process reads its rows for all of its devices; make mesh.data x mesh.fsdp a multiple or a divisor "
            f"of {processes} (config.mesh)"
        )
    return BatchPart(parts.index(rows_of[jax.process_index()]), len(parts))
