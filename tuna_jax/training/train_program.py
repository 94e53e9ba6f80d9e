"""One training step with all that surrounds it: model, optimizer, mesh, shardings, compiled programs.

Building a `Program` allocates nothing: training begins with it, and so does whoever only asks for shapes or memory.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from tuna_jax import flow
from tuna_jax.config import TunaConfig, VAEConfig
from tuna_jax.hardware import flops
from tuna_jax.models import tuna, vae
from tuna_jax.models.logical_sharding import constrain, use_sharding
from tuna_jax.parallel import param_sharding
from tuna_jax.parallel.activation_sharding import Activations
from tuna_jax.sequence import IGNORE
from tuna_jax.training import optimizer, state, step
from tuna_jax.training.config import LoopSettings, TimeSettings

Arrays = Mapping[str, Any]


class Program:
    """What one step of an experiment is.

    Args:
      settings: the loop's.
      config: the model.
      tasks: names of the streams, in the order of `batch['stream']`.
      mesh: the devices.

    Attributes:
      shapes, shardings: of the state.
      abstract_state: `shapes` with `shardings`.
      step: the step as a function of the state, see `step.make_step`.
      jitted: the same, to be compiled: see `step.compile_step`.
    """

    def __init__(
        self, settings: LoopSettings, config: TunaConfig, tasks: tuple[str, ...], mesh: Mesh
    ):
        self.config, self.mesh, self.tasks = config, mesh, tasks
        self._settings = settings
        init = functools.partial(tuna.init, config)
        params = jax.eval_shape(init, jax.random.key(0))
        update = optimizer.build(settings.optimizer, params, settings.steps)
        trained = optimizer.trainable(params, settings.optimizer.frozen)
        self._make_state = functools.partial(
            state.initial,
            optimizer=update,
            window=step.empty_window(len(tasks)),
            seed=settings.seed,
            average=settings.optimizer.ema > 0,
        )
        self._init = init
        self.shapes: state.TrainState = jax.eval_shape(lambda: self._make_state(init))
        self.shardings = state.state_shardings(self.shapes, mesh)
        self.abstract_state = state.abstract(self.shapes, self.shardings)
        self._parts = param_sharding.batch_parts(mesh)
        made = step.make_step(
            _make_loss(config, settings, self._parts),
            update,
            functools.partial(_sample_time, settings.time),
            ema=settings.optimizer.ema,
            log_every=settings.log_every,
            tasks=len(tasks),
            trained=trained if settings.optimizer.frozen else None,
            encode=functools.partial(encode, config.vae, jnp.dtype(settings.vae_dtype)),
            accumulate=settings.accumulate,
            counts=tuna.target_counts,
        )
        self.step: step.Step = _laid_out(made, Activations(mesh))
        self.jitted = step.compile_step(self.step, self.shardings, mesh)
        self._compiled: dict[Any, Any] = {}
        self._flops: dict[Any, tuple[int, int]] = {}  # without the text head, and of it

    @property
    def count(self) -> int:
        """Programs compiled so far: one for every shape of batch, with its heads."""
        return len(self._compiled)

    def initial(self, params: Any = None) -> state.TrainState:
        """The state that a run begins with, created with its shardings.

        Args:
          params: parameters to begin with, laid out as `shardings.params`; they are donated. None: fresh ones.
        """
        if params is None:
            make = lambda: self._make_state(self._init)
            return jax.jit(make, out_shardings=self.shardings)()
        make_from = lambda params: self._make_state(lambda _: params)
        return jax.jit(make_from, out_shardings=self.shardings, donate_argnums=0)(params)

    def batch_shapes(self, batch: Arrays) -> dict[str, jax.ShapeDtypeStruct]:
        """A batch over all processes, as shapes laid over the mesh; `batch` is one process's part, arrays or shapes.

        Raises:
          ValueError: its rows do not divide over the mesh, or a part of it does not (`accumulate`).
        """
        split, processes = param_sharding.batch_sharding(self.mesh), jax.process_count()
        rows = batch["tokens"].shape[0] * processes
        param_sharding.check_batch(rows, self.mesh)
        if rows % (self._settings.accumulate * param_sharding.batch_parts(self.mesh)):
            raise ValueError(
                f"a batch of {rows} does not divide into accumulate={self._settings.accumulate} parts that divide by "
                f"{param_sharding.batch_parts(self.mesh)}, the mesh's share of a batch; choose another accumulate, or a batch "
                f"that is a multiple of {self._settings.accumulate * param_sharding.batch_parts(self.mesh)}"
            )
        return {
            name: jax.ShapeDtypeStruct(
                (array.shape[0] * processes, *array.shape[1:]), array.dtype, sharding=split
            )
            for name, array in batch.items()
        }

    def place(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's part of a batch, on the mesh."""
        split = param_sharding.batch_sharding(self.mesh)
        return {
            name: jax.make_array_from_process_local_data(split, values)
            for name, values in batch.items()
        }

    def compile(self, batch: Arrays, frozen: Any, heads: step.Heads = step.NO_LIMITS) -> Any:
        """The compiled step for batches of this shape, compiled if there is none yet.

        Args:
          batch: one process's part of a batch; arrays or shapes.
          frozen: parameters of the VAE, arrays or shapes; None if no batch holds pixels.
          heads: see `step.Heads`.
        """
        key = _kind(batch, heads)
        if key not in self._compiled:
            lowered = self.jitted.lower(
                self.abstract_state, self.batch_shapes(batch), frozen, heads
            )
            self._compiled[key] = lowered.compile()
        return self._compiled[key]

    def model_flops(self, batch: Arrays, frozen: Any, heads: step.Heads = step.NO_LIMITS) -> int:
        """FLOPs of one step over all processes, without rematerialisation; hardware/flops.py says what counts.

        Attention is counted as the dense one, whatever computes it: a kernel pads, computes scores again, or is not
        seen at all (cuDNN's). A text loss in chunks (`config.text_chunk`) leaves out what has no label: its FLOPs are
        those of the tokens with one. Traced once for every shape.

        Args:
          batch: one process's part; of shapes, every token counts as one with a label.
          frozen, heads: as in `compile`.
        """
        key = _kind(batch, heads)
        chunk, length = self.config.text_chunk, batch["tokens"].shape[1]
        chunked = 0 < chunk < length and heads.text_rows != 0
        if key not in self._flops:
            config = dataclasses.replace(self.config, remat="none", attention_backend="xla")
            plain = Program(self._settings, config, self.tasks, self.mesh)

            def counted(heads: step.Heads) -> int:
                run = functools.partial(plain.step, heads=heads)
                return flops.count(
                    jax.make_jaxpr(run)(plain.abstract_state, self.batch_shapes(batch), frozen)
                )

            silent = counted(heads._replace(text_rows=0)) if chunked else 0
            self._flops[key] = silent, counted(heads) - silent
        silent, said = self._flops[key]
        if not chunked or not isinstance(batch["labels"], np.ndarray):
            return silent + said
        rows = _rounded(heads.text_rows, self._parts, len(batch["labels"]) * jax.process_count())
        labels = (batch["labels"][:, 1:] != IGNORE).sum() * jax.process_count()
        return silent + round(said * float(labels) / (rows * -(-length // chunk) * chunk))

    def eval_shape(self, batch: Arrays, frozen: Any, heads: step.Heads = step.NO_LIMITS) -> Any:
        """Shapes of what the step returns, (state, window), traced without compiling anything."""
        run = functools.partial(self.step, heads=heads)
        return jax.eval_shape(run, self.abstract_state, dict(batch), frozen)


def _kind(batch: Arrays, heads: step.Heads) -> Any:
    """What batches have in common that one compiled program serves."""
    return heads, tuple((name, batch[name].shape) for name in sorted(batch))


def _rounded(rows: int | None, parts: int, most: int) -> int:
    """Rows that a head runs on: those that it is needed for, made to divide by `parts`; None: all."""
    return most if rows is None else min(-(-rows // parts) * parts, most)


def encode(
    config: VAEConfig,
    dtype: Any,
    params: Any,
    pixels: UInt8[Array, "b n f h w 3"],
    key: jax.Array,
) -> Float[Array, "b n t y x c"]:
    """A draw from the posterior of every slot's clip, float32; model.md section 1."""
    batch, slots = pixels.shape[:2]
    clips = pixels.reshape(batch * slots, *pixels.shape[2:])
    clips = constrain(clips, "batch", None, None, None, None)
    mean, std = vae.posterior(config, params, clips, dtype)
    drawn = step.draw(mean, std, key)
    return drawn.reshape(batch, slots, *drawn.shape[1:])


def _make_loss(config: TunaConfig, settings: LoopSettings, parts: int) -> step.Loss:
    """The joint loss; `parts`: what a batch, and so the rows that a head runs on, must divide by."""

    def loss(
        params: Any, batch: Arrays, noise: Any, t: Any, heads: step.Heads, *counts: Any
    ) -> Any:
        def up_to(rows: int | None) -> int | None:
            return None if rows is None else _rounded(rows, parts, len(batch["tokens"]))

        return tuna.loss(
            config,
            params,
            batch,
            noise,
            t,
            flow_weight=settings.flow_weight,
            text_weight=settings.text_weight,
            flow_rows=up_to(heads.flow_rows),
            text_rows=up_to(heads.text_rows),
            counts=counts[0] if counts else None,
        )

    return loss


def _laid_out(made: step.Step, activations: Activations) -> step.Step:
    """A step whose activations lie as `activations` says, whoever traces it."""

    @functools.wraps(made)
    def run(
        state: state.TrainState,
        batch: Arrays,
        frozen: Any = None,
        heads: step.Heads = step.NO_LIMITS,
    ) -> Any:
        with use_sharding(activations):
            return made(state, batch, frozen, heads)

    return run


def _sample_time(settings: TimeSettings, key: jax.Array, shape: tuple[int, ...]) -> Any:
    mu = flow.shift_mu() if settings.shift else None
    return flow.sample_time(key, shape, mean=settings.mean, std=settings.std, mu=mu)
