"""One training step: random times and noise, the joint loss and its gradient, the update, the moving average, metrics.

The whole step is one `jax.jit` over the mesh, with named shardings of inputs and outputs and a donated state. It does
not depend on the host: random numbers are derived from (key, step), and metrics are summed on the device until the host
fetches them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from tuna_jax.models.latent_space import sample_normal
from tuna_jax.models.logical_sharding import constrain
from tuna_jax.parallel import param_sharding
from tuna_jax.training.state import Params, TrainState, moving_average

Batch = Mapping[str, Any]
Window = dict[str, Array]
Step = Callable[..., tuple[TrainState, Window]]
"""`(state, batch, frozen=None, heads=Heads()) -> (state, window)`, see `make_step`."""


class Heads(NamedTuple):
    """Number of rows of a batch, over all processes, that have a target for the flow head and for the text head.

    A head runs only on that many rows (`models.tuna.loss`), and not at all for 0. None: any row may have a target.
    """

    flow_rows: int | None = None
    text_rows: int | None = None


# Name of a logged loss -> row sums of the loss function whose ratio it is.
_TERMS = {"flow_loss": ("flow_sum", "flow_count"), "text_loss": ("text_sum", "text_count")}
_MEANS = ("loss", "gradient_norm")
_SKIPPED = (
    "skipped",
    "skipped_in_row",
)  # Counted in the state, so that a resumed run continues the count.


NO_LIMITS = Heads()

Loss = Callable[..., tuple[Float[Array, ""], dict[str, Array]]]
"""`models.tuna.loss` with its config and weights filled in: `(params, batch, noise, t, heads) -> (loss, metrics)`, the
metrics with rows `flow_sum, flow_count, text_sum, text_count` float32 [B]. For a part of a batch it receives the
whole batch's counts as a sixth argument, and the losses of the parts add up to the loss of the batch."""

Counts = Callable[[Batch], tuple[Array, Array]]
"""The denominators of the losses of a whole batch: `models.tuna.target_counts`."""

Encode = Callable[[Any, Array, jax.Array], Float[Array, "b n t h w c"]]
"""`(parameters of the frozen VAE, uint8 pixels [B, N, F, H, W, 3], key) -> latents`, a sample of the posterior, or
patches of pixels."""

SampleTime = Callable[[jax.Array, tuple[int, ...]], Float[Array, "..."]]

Complete = Callable[[Params, Any, jax.Array], Params]
"""`(trained parameters, frozen, key) -> the network's parameters`: adds what is not trained, which `frozen` holds."""

Augment = Callable[[Batch, jax.Array], dict[str, Array]]
"""`(batch with latents, key) -> further keys of the batch`, see `training/augment.py`."""


# Reduces copies of the donated state (docs/dev/log.md).
_ON_CPU = {"xla_cpu_copy_insertion_use_region_analysis": True}


def empty_window(tasks: int) -> Window:
    """Metric sums over zero steps, for `tasks` streams."""
    zeros = {name: jnp.zeros((tasks,), jnp.float32) for pair in _TERMS.values() for name in pair}
    return zeros | {name: jnp.float32(0) for name in ("steps", *_MEANS)}


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    sample_time: SampleTime,
    *,
    ema: float,
    log_every: int,
    tasks: int,
    trained: Any = None,
    encode: Encode | None = None,
    accumulate: int = 1,
    counts: Counts | None = None,
    augment: Augment | None = None,
    patches: Callable[[Array], Array] | None = None,
    complete: Complete | None = None,
) -> Step:
    """The step as a pure function `(state, batch, frozen, heads) -> (state, window)`.

    A batch holds `latents`; or `moments`, bfloat16 [B, N, 2, T, h, w, C], which the step samples; or `pixels`, which
    the step encodes with the VAE of `frozen`. `latents` with `pixels` are latents and the clean pixels that
    the model's design sees.

    Args:
      loss: the joint loss of a batch.
      optimizer: built by `optimizer.build`.
      sample_time: `(key, shape) -> t` for noised slots.
      ema: decay of the moving average; ignored if the state has none.
      log_every: metric sums restart after every multiple of this number of steps.
      tasks: number of streams; `batch['stream']` is below it.
      trained: tree of bools like the parameters; no gradient is computed where it is False. None: all are trained.
      encode: computes latents from pixels; None: batches do not hold pixels.
      accumulate: number of parts in which a batch's gradient is computed, one after the other. Times, noise and latents
        are those of the whole batch, and the result is the same up to rounding.
      counts: required if `accumulate` is greater than 1.
      patches: `(uint8 pixels) -> images`, the patches of clean pixels that the model's design sees; None: it sees none.
      augment: noise on input images and hidden tokens; None: neither.
      complete: makes the network's parameters of the state's; None: the state holds all of them.

    A loss or gradient that is not finite leaves parameters, average and optimizer unchanged and adds one to
    `state.skipped`. The step still counts, so that the run continues with other data and random numbers.
    """

    def step(
        state: TrainState, batch: Batch, frozen: Any = None, heads: Heads = NO_LIMITS
    ) -> tuple[TrainState, Window]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        time_key, noise_key = jax.random.split(key)
        if patches is not None and "pixels" in batch:
            batch = {**batch, "images": patches(batch["pixels"])}
        if encode is not None and "pixels" in batch and "latents" not in batch:
            latents = encode(frozen, batch["pixels"], jax.random.fold_in(key, 2))
            batch = {**batch, "latents": latents}
        elif "moments" in batch:
            moments = jnp.moveaxis(batch["moments"], 2, 0).astype(jnp.float32)
            latents = sample_normal(moments[0], moments[1], jax.random.fold_in(key, 2))
            batch = {**batch, "latents": latents}
        t = sample_time(time_key, batch["is_target"].shape)
        noise = jax.random.normal(noise_key, batch["latents"].shape, jnp.float32)
        if augment is not None:
            batch = {**batch, **augment(batch, jax.random.fold_in(key, 3))}

        def value_of(params: Params, batch: Batch, noise: Array, t: Array, *totals: Any) -> Any:
            if trained is not None:
                params = jax.tree.map(
                    lambda p, trains: p if trains else jax.lax.stop_gradient(p), params, trained
                )
            if complete is not None:
                params = complete(params, frozen, jax.random.fold_in(key, 4))
            return loss(params, batch, noise, t, heads, *totals)

        gradient = jax.value_and_grad(value_of, has_aux=True)
        if accumulate == 1:
            (value, rows), grads = gradient(state.params, batch, noise, t)
        else:
            assert counts is not None, "gradients in parts require the counts of the whole batch"
            whole = {name: x for name, x in batch.items() if name not in ("pixels", "moments")}
            (value, rows), grads = _in_parts(
                accumulate, gradient, state.params, (whole, noise, t), counts(whole)
            )
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)

        updates, opt_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        average = None
        if state.ema is not None:
            average = moving_average(state.ema, params, state.step, ema)

        def if_finite(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        by_task = jax.nn.one_hot(batch["stream"], tasks, dtype=jnp.float32, axis=0)
        metrics = {"steps": jnp.float32(1), "loss": value, "gradient_norm": norm}
        for pair in _TERMS.values():
            metrics |= {name: by_task @ rows[name] for name in pair}
        restart = state.step % log_every == 0
        window = {
            name: jnp.where(restart, 0.0, old) + jnp.where(finite, metrics[name], 0.0)
            for name, old in state.window.items()
        }
        new = TrainState(
            step=state.step + 1,
            skipped=state.skipped + ~finite,
            skipped_in_row=jnp.where(finite, 0, state.skipped_in_row + 1),
            key=state.key,
            params=if_finite(params, state.params),
            ema=if_finite(average, state.ema),
            optimizer=if_finite(opt_state, state.optimizer),
            window=window,
        )
        skipped = {name: getattr(new, name).astype(jnp.float32) for name in _SKIPPED}
        return new, window | skipped

    return step


def _in_parts(
    parts: int, gradient: Callable[..., Any], params: Params, whole: Any, counts: Any
) -> Any:
    """The result of `gradient(params, *whole)`, computed in `parts` calls one after the other.

    A part takes every n-th row rather than n adjacent ones, so that each part has rows of every device.
    """

    def split(x: Array) -> Array:
        x = jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
        return constrain(x, None, "batch", *(None,) * (x.ndim - 2))

    def add(total: tuple[Array, Params], part: Any) -> tuple[tuple[Array, Params], Any]:
        (value, rows), grads = gradient(params, *part, counts)
        sums = {name: rows[name] for pair in _TERMS.values() for name in pair}
        return jax.tree.map(jnp.add, total, (value, grads)), sums

    start = jnp.float32(0), jax.tree.map(jnp.zeros_like, params)
    (value, grads), rows = jax.lax.scan(add, start, jax.tree.map(split, whole))
    return (value, {name: x.T.reshape(-1) for name, x in rows.items()}), grads


def compile_step(step: Step, shardings: TrainState, mesh: Mesh, frozen: Any = None) -> Any:
    """`jax.jit` of a step, called as `(state, batch, frozen, heads)`.

    The state is sharded as given and donated, batches are sharded over the mesh, and the metrics are replicated, as is
    the frozen VAE; `frozen` has other shardings of what a step takes under this name. There is one program for every
    value of `heads` and every batch shape.
    """
    replicated = param_sharding.replicated(mesh)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return jax.jit(
        step,
        in_shardings=(shardings, param_sharding.batch_sharding(mesh), frozen or replicated),
        out_shardings=(shardings, replicated),
        donate_argnums=0,
        static_argnums=3,
        compiler_options=_ON_CPU if on_cpu else None,
    )


def summarize(window: Window, tasks: tuple[str, ...]) -> dict[str, float]:
    """The numbers to log from the metric sums: means over steps, and losses over all samples and by stream.

    A loss without targets is left out: a stream of questions has no flow loss.
    """
    values = {name: jax.device_get(value) for name, value in window.items()}
    steps = max(float(values["steps"]), 1.0)
    line = {name: float(values[name]) / steps for name in _MEANS}
    line |= {name: float(values[name]) for name in _SKIPPED}
    for name, (total, count) in _TERMS.items():
        if values[count].sum() > 0:
            line[name] = float(values[total].sum() / values[count].sum())
        for index, task in enumerate(tasks):
            if values[count][index] > 0:
                line[f"{name}/{task}"] = float(values[total][index] / values[count][index])
    return line
