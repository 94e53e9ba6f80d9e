"""What the pools do on the devices: every process holds its part of their slots, and runs the same programs on them.

Process 0 schedules; each function here is called by all processes when its device's thread calls it, with the same
arguments. A pool is known by its number.
"""

from __future__ import annotations

import itertools
import signal
from typing import Any

import jax
import numpy as np

from tuna_jax.inference.generation import flow_slots, text_slots
from tuna_jax.inference.generation.text_slots import RowOptions
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.parallel import distributed
from tuna_jax.parallel.leader import on_all_processes
from tuna_jax.serving import programs

_slots: dict[int, Any] = {}
_numbers = itertools.count()


@on_all_processes
def leave_signals_to_process_0() -> None:
    """SIGTERM, which launchers send to all processes, ends the others when process 0 has drained.

    JAX's handler would have all agree on a step to save at, and wait for that at exit.
    """
    if jax.process_index() != 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def new_number() -> int:
    """A number for a pool."""
    return next(_numbers)


def forget(pool: int) -> None:
    """Drops the slots of a pool of this process; those of others end with it."""
    _slots.pop(pool, None)


@on_all_processes
def reset_text(model: Tuna, pool: int, count: int, capacity: int) -> None:
    """Empty slots of answers; see `text_slots.new`."""
    _slots.pop(pool, None)
    _slots[pool] = text_slots.new(model.config, count, capacity, model.sharding)


@on_all_processes
def insert_text(
    model: Tuna,
    pool: int,
    prompts: tuple[np.ndarray, ...],
    clips: np.ndarray | None,
    rows: np.ndarray,
    options: tuple[np.ndarray, ...],
) -> None:
    """Prefills prompts (tokens, lengths, spans) with their clips; see `text_slots.insert`."""
    _slots[pool] = programs.insert_text(
        model.config,
        model.generation_params,
        model.vae_params,
        _slots[pool],
        prompts,  # pyright: ignore[reportArgumentType]
        clips,  # pyright: ignore[reportArgumentType]
        rows,  # pyright: ignore[reportArgumentType]
        RowOptions(*options),  # pyright: ignore[reportArgumentType]
        model.sharding,
        model.tile_above,
    )


@on_all_processes
def decode_text(
    model: Tuna, pool: int, occupied: np.ndarray, most: int, eos: int
) -> tuple[np.ndarray, int, np.ndarray]:
    """(tokens, count, finite) of `text_slots.Decoded`, for the first slots, as many as `occupied` has."""
    _slots[pool], decoded = text_slots.decode(
        model.config,
        model.generation_params,
        _slots[pool],
        occupied,  # pyright: ignore[reportArgumentType]
        np.int32(most),  # pyright: ignore[reportArgumentType]
        np.int32(eos),  # pyright: ignore[reportArgumentType]
        rows=len(occupied),
        sharding=model.sharding,
    )
    tokens, count, finite = map(distributed.to_host, decoded)
    return tokens, int(count), finite


@on_all_processes
def reset_pictures(
    model: Tuna, pool: int, count: int, capacity: int, shape: tuple[int, int, int, int]
) -> None:
    """Empty slots of images or clips; see `flow_slots.new`."""
    _slots.pop(pool, None)
    _slots[pool] = flow_slots.new(model.config, count, capacity, shape, model.sharding)


@on_all_processes
def insert_pictures(
    model: Tuna,
    pool: int,
    positive: tuple[np.ndarray, ...],
    negative: tuple[np.ndarray, ...],
    sources: np.ndarray | None,
    keys: np.ndarray,
    rows: np.ndarray,
) -> None:
    """Prefills prompts (tokens, lengths, spans) with the images to edit; see `flow_slots.insert`."""
    _slots[pool] = programs.insert_pictures(
        model.config,
        model.generation_params,
        model.vae_params,
        _slots[pool],
        positive,  # pyright: ignore[reportArgumentType]
        negative,  # pyright: ignore[reportArgumentType]
        sources,  # pyright: ignore[reportArgumentType]
        keys,  # pyright: ignore[reportArgumentType]
        rows,  # pyright: ignore[reportArgumentType]
        model.sharding,
        model.tile_above,
    )


@on_all_processes
def evaluate(
    model: Tuna, pool: int, arrays: tuple[np.ndarray, ...], guided: bool, keys: int
) -> None:
    """Evaluates the velocity once; `arrays` are rows, t, dt, part and guidance of `flow_slots.evaluate`."""
    _slots[pool] = flow_slots.evaluate(
        model.config,
        model.generation_params,
        _slots[pool],
        *arrays,  # pyright: ignore[reportArgumentType]
        guided=guided,
        keys=keys,
        sharding=model.sharding,
    )


@on_all_processes
def decode_pictures(
    model: Tuna, pool: int, name: str, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The clips of some slots, uint8, and whether each is finite, of the latents `name`: 'x' or 'clean'."""
    clips, finite = programs.decode(
        model.config,
        model.vae_params,
        getattr(_slots[pool], name),
        rows,  # pyright: ignore[reportArgumentType]
        model.sharding,
        model.tile_above,
    )
    return distributed.to_host(clips), distributed.to_host(finite)
