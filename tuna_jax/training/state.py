"""The state of a training run, and its shardings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from tuna_jax.parallel import param_sharding
from tuna_jax.utils import seeds

Params = dict[str, Any]


class TrainState(NamedTuple):
    """The state of a training run; all leaves are arrays, and a checkpoint holds all of them.

    Attributes:
      step: int32, number of steps, including skipped updates.
      skipped: int32, number of updates that were skipped because the loss or a gradient was not finite.
      skipped_in_row: int32, number of consecutive skipped updates up to this step.
      key: uint32, data of the run's random key; step n uses `fold_in(key, n)`, so the random state is (key, step).
      params: the trained parameters, float32: all of the network, or those of an adapter (`adapters/lora.py`).
      ema: exponential moving average of params, or None.
      optimizer: optax state.
      window: float32 sums of metrics since the last log line (see `step.py`), part of the state so that a resumed run
        logs the same numbers.
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
        """The parameters for inference: the moving average if there is one."""
        return self.params if self.ema is None else self.ema


def moving_average(average: Any, params: Any, count: jax.Array, decay: float | jax.Array) -> Any:
    """The exponential moving average of parameters after an update.

    Early in training a fixed decay would leave the average dominated by the initial weights, so it is at most
    `(1 + count) / (10 + count)`.

    Args:
      average: nested parameters, before the update.
      params: the same structure, after the update.
      count: number of updates so far, with or without this one.
      decay: what the decay grows to.
    """
    decay = jnp.minimum(decay, (1.0 + count) / (10.0 + count))
    return jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, average, params)


def keys(seed: int) -> tuple[jax.Array, jax.Array]:
    """The keys of a run's seed: of its initial parameters, and of its steps."""
    init_key, step_key = jax.random.split(seeds.key(seed, "config.seed"))
    return init_key, step_key


def initial(
    init_params: Callable[[jax.Array], Params],
    optimizer: optax.GradientTransformation,
    window: dict[str, jax.Array],
    *,
    seed: int,
    average: bool,
) -> TrainState:
    """The state before the first step. Trace it with `jax.eval_shape` for shapes, or jit it with `out_shardings`.

    Args:
      init_params: `key -> params`.
      optimizer: built by `optimizer.build`.
      window: from `step.empty_window`.
      seed: of the run's random key.
      average: whether the state has a moving average of the parameters.
    """
    init_key, step_key = keys(seed)
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


def state_shardings(shapes: TrainState, mesh: Mesh, *, whole: bool = True) -> TrainState:
    """A sharding for every leaf: parameters by the rules, EMA and optimizer moments like their parameters, the rest
    replicated. `whole`: as in `param_sharding.shardings`; False for adapters."""
    params = param_sharding.shardings(shapes.params, mesh, whole=whole)
    return param_sharding.follow(params, shapes, mesh)


def abstract(shapes: TrainState, shardings: TrainState) -> TrainState:
    """Shapes with shardings: the template for restoring a checkpoint."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
