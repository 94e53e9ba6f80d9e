"""Everything that a training run carries from one step to the next, and its shardings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from tuna_jax.parallel import param_sharding

Params = dict[str, Any]


class TrainState(NamedTuple):
    """The carried state; all leaves are arrays, and a checkpoint holds all of them.

    Attributes:
      step: int32, updates taken (skipped ones counted).
      skipped: int32, updates that were skipped because the loss or a gradient was not finite.
      skipped_in_row: int32, how many of them came last, one after the other.
      key: uint32, data of the run's random key; step n uses `fold_in(key, n)`, so the state of
        randomness is (key, step).
      params: parameters, float32.
      ema: exponential moving average of params, or None.
      optimizer: optax state.
      window: float32 sums of metrics since the last log line (see `step.py`): carried so that a
        resumed run logs the same.
    """

    step: jax.Array
    skipped: jax.Array
    skipped_in_row: jax.Array
    key: jax.Array
    params: Params
    ema: Params | None
    optimizer: Any
    window: dict[str, jax.Array]

    @property
    def averaged(self) -> Params:
        """The parameters to draw and answer with: the moving average if there is one."""
        return self.params if self.ema is None else self.ema


def initial(
    init_params: Callable[[jax.Array], Params],
    optimizer: optax.GradientTransformation,
    window: dict[str, jax.Array],
    *,
    seed: int,
    average: bool,
) -> TrainState:
    """A fresh state. Trace it with `jax.eval_shape` for its shapes, or jit it with
    `out_shardings`."""
    init_key, step_key = jax.random.split(jax.random.key(seed))
    params = init_params(init_key)
    return TrainState(
        step=jnp.int32(0),
        skipped=jnp.int32(0),
        skipped_in_row=jnp.int32(0),
        key=jax.random.key_data(step_key),
        params=params,
        ema=jax.tree.map(jnp.copy, params) if average else None,
        optimizer=optimizer.init(params),
        window=window,
    )


def state_shardings(shapes: TrainState, mesh: Mesh) -> TrainState:
    """A sharding for every leaf: parameters by the rules, EMA and moments like their parameters,
    the rest replicated."""
    params = param_sharding.shardings(shapes.params, mesh)
    return param_sharding.follow(params, shapes, mesh)


def abstract(shapes: TrainState, shardings: TrainState) -> TrainState:
    """Shapes with shardings: the template that a checkpoint is restored into."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
