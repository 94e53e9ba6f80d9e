"""Several processes of one run: joining, stopping at the same step, agreeing, and gathering arrays on the first.

Launchers set three variables; `jax.distributed` does the rest:

    TUNA_JAX_COORDINATOR   host:port of process 0, or `auto`: JAX detects the cluster (TPU pods, GKE, Slurm)
    TUNA_JAX_PROCESSES     number of processes
    TUNA_JAX_PROCESS       number of this process, from 0
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
    """Joins this process to the others of its run; does nothing for a single process. Call it before anything else of
    JAX.

    Afterwards JAX handles SIGTERM: `stop_together` says when to save.

    Args:
      environment: the variables; None: this process's environment.

    Raises:
      ValueError: one of the three variables is missing or wrong; the message names it.
    """
    initialize_arguments = arguments(os.environ if environment is None else environment)
    if initialize_arguments is None:
        return
    # Only the CPU needs it; other platforms have their own collectives.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(**initialize_arguments)


def arguments(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`; None: this process is the only one.

    Raises:
      ValueError: see `initialize`.
    """
    variables = {name: environment.get(name, "") for name in (COORDINATOR, PROCESSES, PROCESS)}
    if variables[COORDINATOR] == "auto" or not any(variables.values()):
        return {} if variables[COORDINATOR] or _is_cluster(environment) else None
    missing = [name for name, value in variables.items() if not value]
    if missing:
        present = ", ".join(f"{name}={value}" for name, value in variables.items() if value)
        raise ValueError(
            f"{present} is set and {' and '.join(missing)} is not; set all three, as launchers/local.py does, or none"
        )
    try:
        processes, process = int(variables[PROCESSES]), int(variables[PROCESS])
    except ValueError as error:
        raise ValueError(
            f"{PROCESSES}={variables[PROCESSES]} and {PROCESS}={variables[PROCESS]} must be whole numbers"
        ) from error
    if not 0 <= process < processes:
        raise ValueError(
            f"{PROCESS}={process} is not one of {PROCESSES}={processes}; it is from 0 to {processes - 1}"
        )
    if processes == 1:
        return None
    return {
        "coordinator_address": variables[COORDINATOR],
        "num_processes": processes,
        "process_id": process,
    }


def _is_cluster(environment: Mapping[str, str]) -> bool:
    """Whether a cluster manager that JAX detects has started this process with others."""
    # Set by srun, and not in a shell of salloc.
    slurm = environment.get("SLURM_STEP_NUM_TASKS", "1")
    slices = environment.get("MEGASCALE_NUM_SLICES", "1")
    return slurm != "1" or slices != "1" or "," in environment.get("TPU_WORKER_HOSTNAMES", "")


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


def to_first(tree: Any) -> Any | None:
    """The whole arrays of a tree in the host memory of the first process; None on the others. All must call it.

    A single process gets the tree unchanged. Otherwise every device holds each whole array for a moment, one at a time.
    """
    if jax.process_count() == 1:
        return tree
    wait_for_all()
    first = jax.process_index() == 0

    def gather(leaf: Any) -> np.ndarray | None:
        whole = leaf
        if isinstance(leaf, jax.Array) and not leaf.is_fully_replicated:
            whole = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(whole) if first else None

    gathered = jax.tree.map(gather, tree)
    return gathered if first else None


def end(message: str) -> NoReturn:
    """Ends the program with an error message.

    With other processes it ends at once: an ordinary exit would wait for them while they wait for this one. When
    process 0, the coordinator, ends, so do the others; the launcher handles the rest.
    """
    if jax.process_count() == 1:
        sys.exit(message)
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


def check_rows(mesh: Mesh) -> None:
    """Raises ValueError unless the processes' devices hold different rows of a batch, equally many each.

    Each process reads its own part of every batch (`data/`), so no row may be on devices of two processes.
    """
    processes = jax.process_count()
    if processes == 1:
        return
    split = param_sharding.batch_sharding(mesh)
    rows = mesh.devices.size
    rows_of = {
        process: {
            row
            for device, (part,) in split.devices_indices_map((rows,)).items()
            if device.process_index == process
            for row in range(*part.indices(rows))
        }
        for process in range(processes)
    }
    if any(len(own) * processes != rows for own in rows_of.values()):
        axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        raise ValueError(
            f"on the mesh {axes}, {processes} processes share rows of a batch, but each process reads its own "
            f"rows; make mesh.data x mesh.fsdp a multiple of {processes} (config.mesh), so that context and tensor "
            f"stay within a host"
        )
