"""The environment variables by which a launcher says that a process is one of several; importing this starts no JAX.

Launchers set three variables; `jax.distributed` does the rest:

    TUNA_JAX_COORDINATOR   host:port of process 0, or `auto`: JAX detects the cluster (TPU pods, GKE, Slurm)
    TUNA_JAX_PROCESSES     number of processes
    TUNA_JAX_PROCESS       number of this process, from 0
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COORDINATOR, PROCESSES, PROCESS = (
    "TUNA_JAX_COORDINATOR",
    "TUNA_JAX_PROCESSES",
    "TUNA_JAX_PROCESS",
)


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
