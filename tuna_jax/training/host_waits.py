"""How long each host waited for data: the slowest one sets the pace of all.

Every process publishes its seconds of an interval through JAX's coordination service, and process 0 reads them when it
writes the log line, one interval later. No device takes part, and no process waits.
"""

from __future__ import annotations

import json

import jax

from tuna_jax.compat import jax_internals

_KEY = "tuna_jax/data_seconds"


def publish(step: int, seconds: float) -> None:
    """Publishes this process's seconds of the interval that ends with `step`."""
    if jax.process_count() > 1:
        value = json.dumps([jax.process_index(), seconds])
        jax_internals.set_value(f"{_KEY}/{step}/{jax.process_index():06d}", value.encode())


def slowest(step: int, own: float) -> tuple[float, int]:
    """The most seconds that a process has published for this interval, and its number; only in process 0.

    Args:
      step: the last step of the interval.
      own: process 0's seconds.
    """
    if jax.process_count() == 1:
        return own, 0
    published = [
        tuple(json.loads(value)) for value in jax_internals.values_under(f"{_KEY}/{step}/")
    ]
    jax_internals.delete_values(f"{_KEY}/{step}/")
    process, seconds = max(published, key=lambda entry: entry[1], default=(0, own))
    return float(seconds), int(process)


def forget() -> None:
    """Removes what was published and not read, so that the same processes can train again; only in process 0."""
    if jax.process_count() > 1:
        jax_internals.delete_values(f"{_KEY}/")
