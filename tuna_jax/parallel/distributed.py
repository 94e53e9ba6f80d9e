"""Several processes of one run: how they find each other, stop together, agree, and bring arrays to the first.

Launchers set three variables; `jax.distributed` does the rest:

    TUNA_JAX_COORDINATOR   host:port of process 0, or `auto`: JAX asks the machine (TPU pods, GKE, Slurm)
    TUNA_JAX_PROCESSES     how many
    TUNA_JAX_PROCESS       this one, from 0
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from tuna_jax.compat import jax_internals
from tuna_jax.parallel import param_sharding

COORDINATOR, PROCESSES, PROCESS = (
    "TUNA_JAX_COORDINATOR",
    "TUNA_JAX_PROCESSES",
    "TUNA_JAX_PROCESS",
)


def initialize(environment: Mapping[str, str] | None = None) -> None:
    """Joins this process to its run's others. To be called before anything else of JAX; nothing for a single process.

    From then on JAX takes SIGTERM: `stop_together` says when to save.

    Args:
      environment: the variables; None: this process's.

    Raises:
      ValueError: the three variables contradict each other; names what is missing or wrong.
    """
    given = os.environ if environment is None else environment
    found = arguments(given)
    if found is None:
        return
    # Of use on CPU alone; other platforms bring their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(**found)


def arguments(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is called with; None: this process is the only one.

    Raises:
      ValueError: see `initialize`.
    """
    named = {name: environment.get(name, "") for name in (COORDINATOR, PROCESSES, PROCESS)}
    if named[COORDINATOR] == "auto" or not any(named.values()):
        return {} if named[COORDINATOR] or _is_cluster(environment) else None
    missing = [name for name, value in named.items() if not value]
    if missing:
        there = ", ".join(f"{name}={value}" for name, value in named.items() if value)
        raise ValueError(
            f"{there} is set and {' and '.join(missing)} is not; set all three, as launchers/local.py does, or none"
        )
    try:
        processes, process = int(named[PROCESSES]), int(named[PROCESS])
    except ValueError as error:
        raise ValueError(
            f"{PROCESSES}={named[PROCESSES]} and {PROCESS}={named[PROCESS]} are to be whole numbers"
        ) from error
    if not 0 <= process < processes:
        raise ValueError(
            f"{PROCESS}={process} is not one of {PROCESSES}={processes}; it counts from 0 to {processes - 1}"
        )
    if processes == 1:
        return None
    return {
        "coordinator_address": named[COORDINATOR],
        "num_processes": processes,
        "process_id": process,
    }


def _is_cluster(environment: Mapping[str, str]) -> bool:
    """Whether something that JAX knows has started this process beside others."""
    slurm = environment.get(
        "SLURM_STEP_NUM_TASKS", "1"
    )  # set by srun alone, not in a shell of salloc
    slices = environment.get("MEGASCALE_NUM_SLICES", "1")
    return slurm != "1" or slices != "1" or "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def wait_for_all(seconds: int = 1800) -> None:
    """Blocks until every process is here. All have to call it, equally often.

    No collective of devices: those give up after 30 seconds on CPU, and one process may compile, or read files, for
    longer than another.

    Raises:
      RuntimeError: some process was not here after `seconds`.
    """
    global _meetings
    if jax.process_count() == 1:
        return
    _meetings += 1
    jax_internals.barrier(f"tuna_jax_{_meetings}", seconds)


_meetings = 0


def stop_together(step: int) -> bool:
    """Whether all processes are to save after this step and end, because one of them got SIGTERM.

    The signal travels in the background; the answer turns true at the same step everywhere, and is then true once. To
    be called after every step by every process, with the same numbers: it costs no communication.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


def all_agree(mine: bool) -> bool:
    """Whether every process says yes. All have to call it."""
    if jax.process_count() == 1:
        return mine
    wait_for_all()
    return bool(np.all(multihost_utils.process_allgather(np.array(mine))))


def from_first(numbers: list[int], most: int = 64) -> list[int]:
    """The first process's list of steps, on all of them: a shared file system may show them different ones.

    All have to call it. The last `most` entries are kept.
    """
    if jax.process_count() == 1:
        return numbers
    wait_for_all()
    padded = np.full(most, -1, np.int32)
    kept = numbers[-most:]
    padded[: len(kept)] = kept
    return [int(n) for n in multihost_utils.broadcast_one_to_all(padded) if n >= 0]


def to_first(tree: Any) -> Any | None:
    """The arrays of a tree, whole, on the first process, in host memory; None on the others. All have to call it.

    A single process gets the tree as it is. Otherwise each array is for a moment whole on every device, one at a time.
    """
    if jax.process_count() == 1:
        return tree
    wait_for_all()
    first = jax.process_index() == 0

    def one(leaf: Any) -> np.ndarray | None:
        whole = leaf
        if isinstance(leaf, jax.Array) and not leaf.is_fully_replicated:
            whole = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(whole) if first else None

    made = jax.tree.map(one, tree)
    return made if first else None


def end(message: str) -> NoReturn:
    """Ends the program as failed, with a message.

    Beside other processes at once: an ordinary exit would wait for them, and they wait for this one. Process 0 takes
    the others along, for it is their coordinator; the launcher sees the rest.
    """
    if jax.process_count() == 1:
        sys.exit(message)
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


def check_rows(mesh: Mesh) -> None:
    """Raises ValueError unless the processes' devices hold different rows of a batch, as many each.

    Each process reads its own part of every batch (`data/`), so no row may lie on devices of two processes.
    """
    processes = jax.process_count()
    if processes == 1:
        return
    split = param_sharding.batch_sharding(mesh)
    rows = mesh.devices.size
    held = {
        process: {
            row
            for device, (part,) in split.devices_indices_map((rows,)).items()
            if device.process_index == process
            for row in range(*part.indices(rows))
        }
        for process in range(processes)
    }
    if any(len(own) * processes != rows for own in held.values()):
        axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        raise ValueError(
            f"on the mesh {axes}, {processes} processes share rows of a batch, and each reads rows of its own; make "
            f"mesh.data x mesh.fsdp a multiple of {processes} (config.mesh), so that context and tensor lie in a host"
        )
