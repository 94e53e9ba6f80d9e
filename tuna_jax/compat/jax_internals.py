"""Everything private or undocumented of JAX that this package uses, except the splash kernel (`compat/splash.py`).

Written against jax 0.10.2. The names were also checked, by reading the source, in jax 0.11.2 and 0.12.0
(`tests/compat/inspect_wheels.py`). None of them has a public counterpart in jax 0.10:

- `jax.distributed` has no barrier; `multihost_utils.sync_global_devices` runs a collective on the devices, which gives
  up after 30 seconds on CPU.
- `jax.distributed` does not give access to the values that its coordination service keeps for all processes.
- `jax.extend.core` has jaxprs, but no dead-code elimination and no description of the primitives' parameters.
- Nothing public says whether a backend has started without starting one.
"""

from __future__ import annotations

import math
from typing import Any

import jax
from jax._src import distributed, xla_bridge
from jax.extend import core
from jax.interpreters import partial_eval

VERSION = "0.10.2"
"""The version of jax that this module was written against."""


def barrier(name: str, seconds: int) -> None:
    """Blocks until all processes of the run have called this with the same name; no device takes part.

    Args:
      name: a name that the run has not used before.
      seconds: how long to wait.

    Raises:
      RuntimeError: some process has not called it in time, or `jax.distributed` is not initialised.
    """
    _client().wait_at_barrier(name, timeout_in_ms=seconds * 1000)


def set_value(key: str, value: bytes) -> None:
    """Stores a value, of at most a few megabytes, that all processes of the run can read.

    Raises:
      RuntimeError: the key has a value already, or `jax.distributed` is not initialised.
    """
    _client().key_value_set_bytes(key, value)


def wait_for_value(key: str, seconds: int) -> bytes | None:
    """The value of a key, as soon as a process has stored it; None if none has within `seconds`.

    Raises:
      RuntimeError: the coordinating process has ended, or `jax.distributed` is not initialised.
    """
    try:
        return _client().blocking_key_value_get_bytes(key, seconds * 1000)
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" in str(error):
            return None
        raise


def values_under(prefix: str) -> list[bytes]:
    """The values of all keys that begin with `prefix`, which ends in a slash, in the order of the keys."""
    return [value for _, value in sorted(_client().key_value_dir_get_bytes(prefix))]


def delete_values(prefix: str) -> None:
    """Removes all keys that begin with `prefix`, which ends in a slash."""
    _client().key_value_delete(prefix)


def _client() -> Any:
    client: Any = distributed.global_state.client
    if client is None:
        raise RuntimeError(
            "jax.distributed is not initialised, so processes cannot wait for each other"
        )
    return client


def backends_started() -> bool:
    """Whether JAX has started a backend in this process; asking does not start one."""
    return xla_bridge.backends_are_initialized()


def without_dead_code(closed: core.ClosedJaxpr) -> Any:
    """The jaxpr without the equations whose results nobody uses."""
    jaxpr = closed.jaxpr
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def shard_map_devices(params: dict[str, Any]) -> int:
    """How many devices run the body of a `shard_map` equation with these parameters."""
    return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])


def pallas_grid(params: dict[str, Any]) -> int:
    """How many times a `pallas_call` equation with these parameters runs its body."""
    return math.prod(int(extent) for extent in params["grid_mapping"].grid)
