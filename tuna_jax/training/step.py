"""One training step: draws times and noise, the joint loss and its gradient, the update, the moving
average, the metrics.

The whole step is one `jax.jit` over the mesh, with named shardings in and out and its state
donated. Nothing in it depends on the host: what is random comes from (key, step), and metrics are
summed on the device until the host wants them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from tuna_jax.models.logical_sharding import constrain
from tuna_jax.parallel import param_sharding
from tuna_jax.training.state import Params, TrainState

Batch = Mapping[str, Any]
Window = dict[str, Array]
Step = Callable[..., tuple[TrainState, Window]]
"""`(state, batch, frozen=None, heads=Heads()) -> (state, window)`, see `make_step`."""


class Heads(NamedTuple):
    """How many rows of a batch, over all processes, the flow head and the text head have something to learn from.

    None: it may be all of them. A head runs on so many rows alone (`models.tuna.loss`); with 0 it does not run.
    """

    flow_rows: int | None = None
    text_rows: int | None = None


# Row sums that the loss reports, and what their ratio is called.
_TERMS = {"flow_loss": ("flow_sum", "flow_count"), "text_loss": ("text_sum", "text_count")}
_MEANS = ("loss", "gradient_norm")
_SKIPPED = ("skipped", "skipped_in_row")  # counted in the state, so that a resumed run goes on


NO_LIMITS = Heads()

Loss = Callable[..., tuple[Float[Array, ""], dict[str, Array]]]
"""`models.tuna.loss` with its config and weights filled in: `(params, batch, noise, t, heads) -> (loss, metrics)`, the
metrics with rows `flow_sum, flow_count, text_sum, text_count` float32 [B]. Of a part of a batch it is called with the
whole batch's counts as a sixth argument, and the parts' losses add up to the whole one's."""

Counts = Callable[[Batch], tuple[Array, Array]]
"""What the losses of a whole batch are divided by: `models.tuna.target_counts`."""

Encode = Callable[[Any, Array, jax.Array], Float[Array, "b n t h w c"]]
"""`(parameters of the frozen VAE, uint8 pixels [B, N, F, H, W, 3], key) -> latents`, a draw from the posterior."""

SampleTime = Callable[[jax.Array, tuple[int, ...]], Float[Array, "..."]]


# Fewer copies of the state that is given away (docs/performance.md).
_ON_CPU = {"xla_cpu_copy_insertion_use_region_analysis": True}


def empty_window(tasks: int) -> Window:
    """Sums over no steps at all, for `tasks` kinds of sample."""
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
) -> Step:
    """The step as a pure function `(state, batch, frozen, heads) -> (state, window)`.

    A batch holds `latents`; or `moments`, bfloat16 [B, N, 2, T, h, w, C], which are drawn from here; or `pixels`,
    which the VAE `frozen` encodes here.

    Args:
      loss: the joint loss of a batch.
      optimizer: built by `optimizer.build`.
      sample_time: `(key, shape) -> t` for the slots that are noised.
      ema: decay of the moving average; ignored if the state has none.
      log_every: the window starts afresh after every multiple of this many steps.
      tasks: kinds of sample; `batch['stream']` counts below it.
      trained: tree of bools like the parameters; no gradient is computed of what is False. None: all are trained.
      encode: makes latents of pixels; None: batches hold latents.
      accumulate: parts that a batch's gradient is computed in, one after the other; times, noise and latents are those
        of the whole batch, and so is the result, up to rounding.
      counts: needed where `accumulate` is more than 1.

    A loss or gradient that is not finite leaves parameters, average and optimizer as they were and
    adds one to `state.skipped`; the step still counts, so that data and randomness move on.
    """

    def step(
        state: TrainState, batch: Batch, frozen: Any = None, heads: Heads = NO_LIMITS
    ) -> tuple[TrainState, Window]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        time_key, noise_key = jax.random.split(key)
        if encode is not None and "pixels" in batch:
            latents = encode(frozen, batch["pixels"], jax.random.fold_in(key, 2))
            batch = {**batch, "latents": latents}
        elif "moments" in batch:
            moments = jnp.moveaxis(batch["moments"], 2, 0).astype(jnp.float32)
            latents = draw(moments[0], moments[1], jax.random.fold_in(key, 2))
            batch = {**batch, "latents": latents}
        t = sample_time(time_key, batch["is_target"].shape)
        noise = jax.random.normal(noise_key, batch["latents"].shape, jnp.float32)

        def value_of(params: Params, batch: Batch, noise: Array, t: Array, *counted: Any) -> Any:
            if trained is not None:
                params = jax.tree.map(
                    lambda p, own: p if own else jax.lax.stop_gradient(p), params, trained
                )
            return loss(params, batch, noise, t, heads, *counted)

        gradient = jax.value_and_grad(value_of, has_aux=True)
        if accumulate == 1:
            (value, rows), grads = gradient(state.params, batch, noise, t)
        else:
            assert counts is not None, "parts of a batch are divided by the counts of all of it"
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
            # A young average would be dominated by the initial weights.
            decay = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
            average = jax.tree.map(lambda a, p: decay * a + (1.0 - decay) * p, state.ema, params)

        def chosen(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        taken = state.step + 1
        by_task = jax.nn.one_hot(batch["stream"], tasks, dtype=jnp.float32, axis=0)
        seen = {"steps": jnp.float32(1), "loss": value, "gradient_norm": norm}
        for pair in _TERMS.values():
            seen |= {name: by_task @ rows[name] for name in pair}
        fresh = state.step % log_every == 0
        window = {
            name: jnp.where(fresh, 0.0, old) + jnp.where(finite, seen[name], 0.0)
            for name, old in state.window.items()
        }
        new = TrainState(
            step=taken,
            skipped=state.skipped + ~finite,
            skipped_in_row=jnp.where(finite, 0, state.skipped_in_row + 1),
            key=state.key,
            params=chosen(params, state.params),
            ema=chosen(average, state.ema),
            optimizer=chosen(opt_state, state.optimizer),
            window=window,
        )
        skipped = {name: getattr(new, name).astype(jnp.float32) for name in _SKIPPED}
        return new, window | skipped

    return step


def _in_parts(
    parts: int, gradient: Callable[..., Any], params: Params, whole: Any, counts: Any
) -> Any:
    """What `gradient(params, *whole)` returns, from `parts` calls one after the other.

    A part is every n-th row, not n neighbours: so every device has rows of its own in each part.
    """

    def split(x: Array) -> Array:
        x = jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
        return constrain(x, None, "batch", *(None,) * (x.ndim - 2))

    def add(total: tuple[Array, Params], part: Any) -> tuple[tuple[Array, Params], Any]:
        (value, rows), grads = gradient(params, *part, counts)
        kept = {name: rows[name] for pair in _TERMS.values() for name in pair}
        return jax.tree.map(jnp.add, total, (value, grads)), kept

    start = jnp.float32(0), jax.tree.map(jnp.zeros_like, params)
    (value, grads), rows = jax.lax.scan(add, start, jax.tree.map(split, whole))
    return (value, {name: x.T.reshape(-1) for name, x in rows.items()}), grads


def draw(
    mean: Float[Array, "*extent"], std: Float[Array, "*extent"], key: jax.Array
) -> Float[Array, "*extent"]:
    """A draw from the posterior; model.md section 1."""
    return mean + std * jax.random.normal(key, mean.shape, mean.dtype)


def compile_step(step: Step, shardings: TrainState, mesh: Mesh) -> Any:
    """`jax.jit` of a step, called as `(state, batch, frozen, heads)`: state sharded as given and donated, batches
    split over the mesh, the frozen VAE and the metrics replicated; a program for every `heads` and shape of batch."""
    whole = param_sharding.replicated(mesh)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return jax.jit(
        step,
        in_shardings=(shardings, param_sharding.batch_sharding(mesh), whole),
        out_shardings=(shardings, whole),
        donate_argnums=0,
        static_argnums=3,
        compiler_options=_ON_CPU if on_cpu else None,
    )


def summarize(window: Window, tasks: tuple[str, ...]) -> dict[str, float]:
    """A fetched window as the numbers to log: means over its steps, and losses over all samples and
    by task.

    A loss that no sample had is left out: a stream of questions has no flow loss.
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
