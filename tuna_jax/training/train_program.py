"""The training step of an experiment with model, optimizer, mesh, shardings and compiled programs.

Building a `Program` allocates nothing, so planning uses it for shapes and memory as well as training.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from tuna_jax import flow
from tuna_jax.adapters.lora import Adapters
from tuna_jax.config import TunaConfig
from tuna_jax.hardware import flops
from tuna_jax.models import latent_space, pixels, tuna
from tuna_jax.models.logical_sharding import constrain, use_sharding
from tuna_jax.parallel import distributed, param_sharding
from tuna_jax.parallel.activation_sharding import Activations
from tuna_jax.sequence import IGNORE
from tuna_jax.training import augment, optimizer, state, step
from tuna_jax.training.config import LoopSettings, TimeSettings

Arrays = Mapping[str, Any]


class Frozen(NamedTuple):
    """What the step of an adapter reads and does not change.

    Attributes:
      vae: parameters of the VAE, or None.
      base: parameters of the frozen model without those that are trained whole.
    """

    vae: Any
    base: Any


class Program:
    """The training step of an experiment.

    Args:
      settings: of the loop.
      config: the model.
      tasks: names of the streams, in the order of `batch['stream']`.
      mesh: the devices.

    Attributes:
      shapes, shardings: of the state.
      abstract_state: `shapes` with `shardings`.
      adapters: what is trained of a frozen model (`config.lora`); None: all parameters are those of the state.
      network_shapes, network_shardings: of all parameters of the network, those of a frozen model included.
      readers: number of parts of a batch that different processes read (`distributed.batch_part`).
      step: the step as a function of the state, see `step.make_step`.
      jitted: the same, to be compiled: see `step.compile_step`.
    """

    def __init__(
        self, settings: LoopSettings, config: TunaConfig, tasks: tuple[str, ...], mesh: Mesh
    ):
        self.config, self.mesh, self.tasks = config, mesh, tasks
        self._settings = settings
        self.network_shapes = params = tuna.shapes(config)
        self.network_shardings = param_sharding.shardings(params, mesh)
        self.adapters = Adapters(settings.lora, params) if settings.lora.targets else None
        if self.adapters is not None:
            params = self.adapters.shapes
        update = optimizer.build(settings.optimizer, params, settings.steps)
        chosen = settings.optimizer
        trained = optimizer.trainable(params, chosen.frozen, chosen.trained)
        self._make_state = functools.partial(
            state.initial,
            optimizer=update,
            window=step.empty_window(len(tasks)),
            seed=settings.seed,
            average=settings.optimizer.ema > 0,
        )
        self._init = functools.partial(tuna.init, config)
        # From the parameters' shapes, which are traced once per config.
        self.shapes: state.TrainState = jax.eval_shape(
            lambda params: self._make_state(lambda _: params), params
        )
        self.shardings = state.state_shardings(self.shapes, mesh, whole=self.adapters is None)
        self.abstract_state = state.abstract(self.shapes, self.shardings)
        self._parts = param_sharding.batch_parts(mesh)
        self.readers = distributed.batch_part(mesh).count
        plain_step = step.make_step(
            _make_loss(config, settings, self._parts),
            update,
            functools.partial(_sample_time, settings.time),
            ema=settings.optimizer.ema,
            log_every=settings.log_every,
            tasks=len(tasks),
            trained=trained if chosen.frozen or chosen.trained else None,
            encode=self._encode,
            accumulate=settings.accumulate,
            counts=tuna.target_counts,
            augment=_augment(config, settings),
            patches=image_patches(config),
            complete=None if self.adapters is None else self._complete,
        )
        self.step: step.Step = _with_activation_sharding(
            plain_step, Activations(mesh, ring=settings.mesh.context_attention == "ring")
        )
        self.jitted = step.compile_step(self.step, self.shardings, mesh, self._frozen_shardings())
        self._compiled: dict[Any, Any] = {}
        self._ahead: dict[Any, Future[Any]] = {}
        self._flops: dict[
            Any, tuple[int, int]
        ] = {}  # FLOPs without the text head, FLOPs of the text head

    @property
    def count(self) -> int:
        """Number of compiled programs: one for every batch shape with its heads."""
        return len(self._compiled)

    def frozen(self, vae: Any, base: Any = None) -> Any:
        """What the step takes as `frozen`: the VAE, or with an adapter `Frozen`.

        Args:
          vae: its parameters, arrays or shapes, or None.
          base: all parameters of the frozen model of an adapter, arrays or shapes.
        """
        return vae if self.adapters is None else Frozen(vae, self.adapters.frozen(base))

    def abstract_frozen(self, vae: Any) -> Any:
        """`frozen` with the shapes of the frozen model in the dtype of `config.lora.base_dtype`."""
        dtype = jnp.dtype(self._settings.lora.base_dtype)
        base = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding),
            self.network_shapes,
            self.network_shardings,
        )
        return self.frozen(vae, base)

    def network(self, params: Any, frozen: Any) -> Any:
        """All parameters of the network, for inference in training; those of an adapter are not merged.

        Args:
          params: of the state, or their average.
          frozen: as the step takes it.
        """
        return params if self.adapters is None else self.adapters.combined(frozen.base, params)

    def _complete(self, params: Any, frozen: Frozen, key: jax.Array) -> Any:
        assert self.adapters is not None
        return self.adapters.combined(frozen.base, params, key)

    def _encode(self, frozen: Any, images: Array, key: jax.Array) -> Array:
        vae = frozen if self.adapters is None else frozen.vae
        return encode(self.config.space, jnp.dtype(self._settings.vae_dtype), vae, images, key)

    def _frozen_shardings(self) -> Any:
        if self.adapters is None:
            return None
        base = self.adapters.frozen(self.network_shardings)
        return Frozen(param_sharding.replicated(self.mesh), base)

    def initial(self, params: Any = None, *, base: Any = None) -> state.TrainState:
        """The state before the first step, created with its shardings.

        Args:
          params: initial parameters, sharded as `shardings.params`; they are donated. None: random parameters.
          base: all parameters of the frozen model of an adapter, sharded as `network_shardings`; in place of `params`.
        """
        adapters = self.adapters
        if adapters is not None:
            make_of = lambda base: self._make_state(lambda key: adapters.init(key, base))
            return jax.jit(make_of, out_shardings=self.shardings)(base)
        if params is None:
            make = lambda: self._make_state(self._init)
            return jax.jit(make, out_shardings=self.shardings)()
        make_from = lambda params: self._make_state(lambda _: params)
        return jax.jit(make_from, out_shardings=self.shardings, donate_argnums=0)(params)

    def batch_shapes(self, batch: Arrays) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, with shardings, of a batch over all processes; `batch` is one process's part, arrays or shapes.

        Raises:
          ValueError: its rows, or the rows of a part (`accumulate`), cannot be divided over the mesh.
        """
        sharding, parts = param_sharding.batch_sharding(self.mesh), self.readers
        rows = batch["tokens"].shape[0] * parts
        param_sharding.check_batch(rows, self.mesh)
        if rows % (self._settings.accumulate * param_sharding.batch_parts(self.mesh)):
            raise ValueError(
                f"a batch of {rows} rows cannot be divided into config.accumulate={self._settings.accumulate} parts of "
                f"a multiple of {param_sharding.batch_parts(self.mesh)} (the batch axes of the mesh); change "
                f"config.accumulate, or use a multiple of "
                f"{self._settings.accumulate * param_sharding.batch_parts(self.mesh)} rows"
            )
        return {
            name: jax.ShapeDtypeStruct(
                (array.shape[0] * parts, *array.shape[1:]), array.dtype, sharding=sharding
            )
            for name, array in batch.items()
        }

    def place(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """The sharded arrays of a batch; `batch` is this process's part."""
        sharding = param_sharding.batch_sharding(self.mesh)
        return {
            name: jax.make_array_from_process_local_data(sharding, values)
            for name, values in batch.items()
        }

    def compile(self, batch: Arrays, frozen: Any, heads: step.Heads = step.NO_LIMITS) -> Any:
        """The compiled step for batches of this shape; the first call compiles it.

        Args:
          batch: one process's part of a batch; arrays or shapes.
          frozen: parameters of the VAE, arrays or shapes; None if batches do not hold pixels.
          heads: see `step.Heads`.
        """
        key = _program_key(batch, heads)
        if key not in self._compiled:
            ahead = self._ahead.pop(key, None)
            if ahead is None or ahead.cancel():  # What still waits for a thread is compiled here.
                self._compiled[key] = self._build(batch, frozen, heads)
            else:
                self._compiled[key] = ahead.result()
        return self._compiled[key]

    def _build(self, batch: Arrays, frozen: Any, heads: step.Heads) -> Any:
        lowered = self.jitted.lower(self.abstract_state, self.batch_shapes(batch), frozen, heads)
        return lowered.compile()

    def compile_ahead(
        self, shapes: Sequence[tuple[Arrays, step.Heads]], frozen: Any, pool: ThreadPoolExecutor
    ) -> None:
        """Begins to compile the step for these shapes in the threads of `pool`, in their order.

        `compile` waits for the one that it needs; `check_ahead` raises the error of one that failed.

        Args:
          shapes: one process's part of a batch (arrays or shapes), and its heads.
          frozen: as in `compile`.
          pool: the caller shuts it down.
        """
        for batch, heads in shapes:
            key = _program_key(batch, heads)
            if key not in self._compiled and key not in self._ahead:
                self._ahead[key] = pool.submit(self._build, batch, frozen, heads)

    def expects(self, batch: Arrays, heads: step.Heads = step.NO_LIMITS) -> bool:
        """Whether the step for batches of this shape is compiled, or about to be."""
        key = _program_key(batch, heads)
        return key in self._compiled or key in self._ahead

    def check_ahead(self) -> int:
        """Number of shapes that are not compiled yet; raises the error of one that cannot be compiled."""
        for future in self._ahead.values():
            if future.done():
                future.result()
        return sum(not future.done() for future in self._ahead.values())

    def model_flops(self, batch: Arrays, frozen: Any, heads: step.Heads = step.NO_LIMITS) -> int:
        """FLOPs of one step over all processes, without rematerialisation; see hardware/flops.py.

        Attention is counted as dense attention for every backend: a kernel pads, computes scores again, or is opaque
        (cuDNN). A text loss in chunks (`config.text_chunk`) skips tokens without a label, so only the FLOPs of tokens
        with a label count. The step is traced once for every shape.

        Args:
          batch: one process's part; if it holds shapes, every token counts as one with a label.
          frozen, heads: as in `compile`.
        """
        key = _program_key(batch, heads)
        chunk, length = self.config.text_chunk, batch["tokens"].shape[1]
        chunked = 0 < chunk < length and heads.text_rows != 0
        if key not in self._flops:
            config = dataclasses.replace(self.config, remat="none", attention_backend="xla")
            mesh = dataclasses.replace(self._settings.mesh, context_attention="gather")
            settings = dataclasses.replace(self._settings, mesh=mesh)
            plain = Program(settings, config, self.tasks, self.mesh)

            def counted(heads: step.Heads) -> int:
                run = functools.partial(plain.step, heads=heads)
                return flops.count(
                    jax.make_jaxpr(run)(plain.abstract_state, self.batch_shapes(batch), frozen)
                )

            without_text = counted(heads._replace(text_rows=0)) if chunked else 0
            self._flops[key] = without_text, counted(heads) - without_text
        without_text, text = self._flops[key]
        if not chunked or not isinstance(batch["labels"], np.ndarray):
            return without_text + text
        rows = _round_up(heads.text_rows, self._parts, len(batch["labels"]) * self.readers)
        labels = (batch["labels"][:, 1:] != IGNORE).sum() * self.readers
        return without_text + round(text * float(labels) / (rows * -(-length // chunk) * chunk))

    def eval_shape(self, batch: Arrays, frozen: Any, heads: step.Heads = step.NO_LIMITS) -> Any:
        """Shapes of the step's result (state, window), traced without compiling."""
        run = functools.partial(self.step, heads=heads)
        return jax.eval_shape(run, self.abstract_state, dict(batch), frozen)


def _program_key(batch: Arrays, heads: step.Heads) -> Any:
    """Equal for batches that use the same compiled program."""
    return heads, tuple((name, batch[name].shape) for name in sorted(batch))


def _round_up(rows: int | None, parts: int, batch: int) -> int:
    """Number of rows that a head runs on: `rows` rounded up to a multiple of `parts`; None: all rows of the batch."""
    return batch if rows is None else min(-(-rows // parts) * parts, batch)


def encode(
    space: latent_space.Space,
    dtype: Any,
    params: Any,
    images: UInt8[Array, "b n f h w 3"],
    key: jax.Array,
) -> Float[Array, "b n t y x c"]:
    """A sample of the latents of every slot's clip, float32 (model.md section 1), or its patches of pixels."""
    batch, slots = images.shape[:2]
    clips = images.reshape(batch * slots, *images.shape[2:])
    clips = constrain(clips, "batch", None, None, None, None)
    latents = latent_space.sample(space, params, clips, key, dtype)
    return latents.reshape(batch, slots, *latents.shape[1:])


def image_patches(config: TunaConfig) -> Callable[[Array], Array] | None:
    """`(uint8 pixels [B, N, 1, H, W, 3]) -> patches` for a design that sees clean pixels; None for other designs."""
    if not config.sees_pixels:
        return None
    return functools.partial(pixels.from_uint8, config.image_patches)


def _augment(config: TunaConfig, settings: LoopSettings) -> step.Augment | None:
    """Draws of `settings.input_noise` and `settings.masking`; None if both are off.

    Raises:
      ValueError: the model has no mask token.
    """
    noise, masking = settings.input_noise, settings.masking
    if masking.high > 0 and not config.mask_token:
        raise ValueError(
            f"config.masking.high is {masking.high}, and the model has no mask token; set "
            f"config.model.mask_token=True, or config.masking.high=0"
        )
    if not noise.probability and not masking.high:
        return None
    return functools.partial(augment.draw, noise, masking)


def _make_loss(config: TunaConfig, settings: LoopSettings, parts: int) -> step.Loss:
    """The joint loss; the rows of a batch, and those that a head runs on, are a multiple of `parts`."""

    def loss(
        params: Any, batch: Arrays, noise: Any, t: Any, heads: step.Heads, *counts: Any
    ) -> Any:
        def up_to(rows: int | None) -> int | None:
            return None if rows is None else _round_up(rows, parts, len(batch["tokens"]))

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


def _with_activation_sharding(plain_step: step.Step, activations: Activations) -> step.Step:
    """A step that constrains its activations with `activations` wherever it is traced."""

    @functools.wraps(plain_step)
    def run(
        state: state.TrainState,
        batch: Arrays,
        frozen: Any = None,
        heads: step.Heads = step.NO_LIMITS,
    ) -> Any:
        with use_sharding(activations):
            return plain_step(state, batch, frozen, heads)

    return run


def _sample_time(settings: TimeSettings, key: jax.Array, shape: tuple[int, ...]) -> Any:
    mu = flow.shift_mu() if settings.shift else None
    return flow.sample_time(key, shape, mean=settings.mean, std=settings.std, mu=mu)
