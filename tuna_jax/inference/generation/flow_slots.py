"""Continuous batching of images and clips: noisy latents in slots, each at its own time of its own grid.

A request's prompts are prefilled and its noise inserted into a free slot; `evaluate` then evaluates the velocity of
some slots, one step (Euler) or half of one (Heun) of each. Rows with other numbers of steps, guidance, solvers and
seeds share a call, and a request joins those under way at the next step. The caller plans the evaluations of each row
(`plan`) and says at which one it is; so it can run something else between any two of them.

`flow_sampler.sample` is the same for a batch that begins and ends together, and shares the code.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from tuna_jax import flow
from tuna_jax.config import TunaConfig
from tuna_jax.inference.generation import flow_sampler
from tuna_jax.inference.generation.prefix_cache import (
    Cache,
    Prefix,
    cleared_cache,
    join,
    prefill,
    prepared,
    row_axis,
    take_rows,
    with_rows,
)
from tuna_jax.models.layers import Params
from tuna_jax.models.logical_sharding import LogicalSharding, use_sharding


class FlowSlots(NamedTuple):
    """The state of all slots between two evaluations.

    Attributes:
      positive, negative: caches of the prefixes of both branches of guidance.
      lengths: of both prefixes, in tokens.
      x: the latents at the beginning of the step.
      at: the latents at which the velocity is evaluated next.
      first: the velocity at the beginning of a step of Heun's method.
      clean: the clean latents that the last evaluation predicted.
    """

    positive: Cache
    negative: Cache
    lengths: Int[Array, "2 s"]
    x: Float[Array, "s t h w c"]
    at: Float[Array, "s t h w c"]
    first: Float[Array, "s t h w c"]
    clean: Float[Array, "s t h w c"]


class Evaluation(NamedTuple):
    """One evaluation of the velocity of a row.

    Attributes:
      t: the time at which it is evaluated.
      dt: the length of its step.
      part: 0 for a step of Euler's method; 1 and 2 for the evaluations of one of Heun's.
      guided: whether guidance is applied.
    """

    t: np.float32
    dt: np.float32
    part: int
    guided: bool


def plan(
    config: TunaConfig,
    *,
    steps: int,
    shift: float,
    solver: str,
    guidance: float,
    guidance_interval: Sequence[float] = flow.EVERYWHERE,
) -> list[Evaluation]:
    """The evaluations that `flow_sampler.sample` makes with these options.

    Raises:
      ValueError: as `flow_sampler.sample`.
    """
    if solver not in flow.SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; choose one of {', '.join(flow.SOLVERS)}")
    bounds = flow.guidance_bounds(guidance_interval)
    grid = flow.time_grid(steps, shift)
    ends = not config.flow.predicts_clean

    def guided(t: np.float32) -> bool:
        if guidance in (0.0, 1.0):
            return False
        return bounds is None or bool(flow.guides(t, bounds, ends))

    evaluations = []
    for index, (t, next_t) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        dt = next_t - t
        # Heun's last step would divide a clean prediction by a time of nothing; see `flow.integrate`.
        euler = solver == "euler" or (config.flow.predicts_clean and index == steps - 1)
        if euler:
            evaluations.append(Evaluation(t, dt, 0, guided(t)))
            continue
        # The time that `flow.heun_step` evaluates at, rounded as it rounds it.
        end = np.float32(t + dt)
        evaluations += [Evaluation(t, dt, 1, guided(t)), Evaluation(end, dt, 2, guided(end))]
    return evaluations


@functools.partial(jax.jit, static_argnames=("config", "slots", "capacity", "shape", "sharding"))
def new(
    config: TunaConfig,
    slots: int,
    capacity: int,
    shape: tuple[int, int, int, int],
    sharding: LogicalSharding | None = None,
) -> FlowSlots:
    """Empty slots for latents of one shape [t, h, w, c], after prefixes that leave room for them in `capacity`."""
    with use_sharding(sharding):
        positive, negative = (
            cleared_cache(config, slots, capacity, with_flow_head=True) for _ in range(2)
        )
        x, at, first, clean = (jnp.zeros((slots, *shape), jnp.float32) for _ in range(4))
        lengths = jnp.ones((2, slots), jnp.int32)
        return FlowSlots(positive, negative, lengths, x, at, first, clean)


@functools.partial(jax.jit, static_argnames=("config", "sharding"), donate_argnames="slots")
def insert(
    config: TunaConfig,
    params: Params,
    slots: FlowSlots,
    positive: Prefix,
    negative: Prefix,
    keys: UInt32[Array, "b words"],
    rows: Int[Array, " b"],
    sharding: LogicalSharding | None = None,
) -> FlowSlots:
    """Prefills prompts and puts them into slots, with the noise of their keys.

    A slot is overwritten as a whole.

    Args:
      config, params: the model.
      slots: the state; it is donated.
      positive, negative: the prefixes of both branches, of one width; see `flow_sampler.sample`. To fill a batch, a row
        may be there several times, with the same slot.
      keys: PRNG key data of the noise, see `batching.key_data`.
      rows: the slot of each.
      sharding: how activations are sharded, see `flow_sampler.sample`.
    """
    with use_sharding(sharding):
        count = len(rows)
        both = join(positive, negative)
        cache, _ = prefill(config, params, both, both.tokens.shape[1], with_flow_head=True)
        halves = [
            jax.tree.map(lambda leaf, at=start: leaf[:, at : at + count], cache)
            for start in (0, count)
        ]
        noise = jax.vmap(lambda key: jax.random.normal(key, slots.x.shape[1:]))(
            jax.random.wrap_key_data(keys)
        )
        x = config.flow.noise_scale * noise
        lengths = jnp.stack([positive.lengths, negative.lengths])
        return FlowSlots(
            with_rows(config, slots.positive, halves[0], rows),
            with_rows(config, slots.negative, halves[1], rows),
            slots.lengths.at[:, rows].set(lengths),
            slots.x.at[rows].set(x),
            slots.at.at[rows].set(x),
            slots.first.at[rows].set(0.0),
            slots.clean.at[rows].set(0.0),
        )


@functools.partial(
    jax.jit, static_argnames=("config", "guided", "keys", "sharding"), donate_argnames="slots"
)
def evaluate(
    config: TunaConfig,
    params: Params,
    slots: FlowSlots,
    rows: Int[Array, " r"],
    t: Float[Array, " r"],
    dt: Float[Array, " r"],
    part: Int[Array, " r"],
    guidance: Float[Array, " r"],
    *,
    guided: bool,
    keys: int | None = None,
    sharding: LogicalSharding | None = None,
) -> FlowSlots:
    """Evaluates the velocity of some slots and moves their latents.

    Args:
      config, params: the model.
      slots: the state; it is donated.
      rows: the slots; to fill a batch, one may be there several times, with the same values.
      t, dt, part: the `Evaluation` of each.
      guidance: guidance scale of each.
      guided: whether guidance is applied, to all of them; otherwise only the positive branch runs.
      keys: positions of the cache to compute with: no row's prefix and latents need more. None: all.
      sharding: how activations are sharded, see `flow_sampler.sample`.
    """
    with use_sharding(sharding):
        keys = int(keys or jax.tree.leaves(slots.positive)[0].shape[-2])
        cache, lengths = take_rows(config, slots.positive, rows, keys), slots.lengths[0, rows]
        if guided:
            negative = take_rows(config, slots.negative, rows, keys)
            axis = row_axis(config)
            cache = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis), cache, negative)
            lengths = jnp.concatenate([lengths, slots.lengths[1, rows]])
        x, at, first = slots.x[rows], slots.at[rows], slots.first[rows]
        velocity = flow_sampler.guided_velocity(
            config, prepared(config, params), cache, lengths, at, t, guidance
        ).astype(jnp.float32)

        def each(values: Array) -> Array:
            return values.reshape(-1, 1, 1, 1, 1)

        # The sums of `flow.euler_step` and `flow.heun_step`, one evaluation at a time.
        ahead = x + each(dt) * velocity
        second = x + 0.5 * each(dt) * (first + velocity)
        is_first, is_second = each(part == 1), each(part == 2)
        new_x = jnp.where(is_first, x, jnp.where(is_second, second, ahead))
        new_at = jnp.where(is_second, second, ahead)
        clean = at + each(1.0 - t) * velocity
        return slots._replace(
            x=slots.x.at[rows].set(new_x),
            at=slots.at.at[rows].set(new_at),
            first=slots.first.at[rows].set(velocity),
            clean=slots.clean.at[rows].set(clean),
        )
