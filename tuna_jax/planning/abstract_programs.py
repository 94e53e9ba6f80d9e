"""The programs of an experiment, sharded over the devices of a topology, as shapes only.

This is the only module of planning that knows how a step, a sampler and a decoder are called.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from tuna_jax.inference.generation import flow_sampler
from tuna_jax.inference.generation.prefix_cache import Prefix
from tuna_jax.models import latent_space, tuna
from tuna_jax.parallel import param_sharding
from tuna_jax.parallel.activation_sharding import Activations
from tuna_jax.parallel.mesh import AXES, make_mesh
from tuna_jax.planning.stage import Experiment, Stream
from tuna_jax.trainers.stream_config import picture_size
from tuna_jax.training.train_program import Program

PROMPT = 128  # Tokens of the prompt that the sampler is planned for.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """A program that can be traced and compiled.

    Attributes:
      kind: 'train', 'sample' or 'decode'.
      stream: the stream of its batch; '' for the latter two.
      share: the share of training steps that run it; 0 for the latter two.
      rows, tokens, pictures: of one run, over all devices; pictures counts images and frames of clips.
      jitted, arguments: for `jitted.trace(*arguments)`.
      parts: bytes on one device of the parts of the arguments, by shapes and shardings.
      plain: the same program with dense attention and without rematerialisation, for counting FLOPs; None: it is this
        program.
    """

    kind: str
    stream: str = ""
    share: float = 0.0
    rows: int
    tokens: int
    pictures: int
    jitted: Any
    arguments: tuple[Any, ...]
    parts: dict[str, float]
    plain: Callable[[], Planned] | None = None


def mesh_of(experiment: Experiment, devices: list[Any], slices: int = 1) -> Mesh:
    """The experiment's mesh over the devices of one or more slices of a topology, with one index of its axis `slices`
    each.

    Raises:
      ValueError: the mesh's sizes do not fit the devices, or the slices are not in order.
    """
    settings = experiment.settings.mesh
    if "slices" in AXES:
        settings = dataclasses.replace(settings, slices=slices)  # pyright: ignore[reportCallIssue]
    mesh = make_mesh(settings, devices)
    if slices > 1 and not slice_by_slice(mesh.devices.flat):
        raise ValueError(
            f"the mesh mixes the {slices} slices; its outermost axis that is not 1 must count them"
        )
    return mesh


def slice_by_slice(devices: Iterable[Any]) -> bool:
    """Whether each slice's devices are contiguous and the slices in order; `collectives.traffic` relies on it."""
    indices = [device.slice_index for device in devices]
    return indices == sorted(indices)


def all_of(
    experiment: Experiment,
    mesh: Mesh,
    rows: int | None = None,
    streams: Sequence[str] = (),
    kinds: Sequence[str] = (),
) -> Iterator[Planned]:
    """The programs of an experiment one by one: the step of every stream, the sampler, the decoder.

    Args:
      experiment, mesh: what to plan, and the devices.
      rows: of every batch, over all devices; None: as each stream is configured.
      streams: names of streams, to get only their steps; empty: all, with sampler and decoder.
      kinds: the kinds to get; empty: all.

    Raises:
      ValueError: there is no such stream, or something does not divide over the mesh.
    """
    unknown = [name for name in streams if name not in experiment.tasks]
    if unknown:
        raise ValueError(
            f"--stream={unknown[0]}: {experiment.name} has the streams {', '.join(experiment.tasks)}"
        )
    kinds = kinds or (("train",) if streams else ("train", "sample", "decode"))
    if "train" in kinds:
        for stream in experiment.streams(rows):
            if not streams or stream.name in streams:
                yield train_step(experiment, stream, mesh)
    if "sample" in kinds:
        yield sampler(experiment, mesh)
    if "decode" in kinds:
        yield decoder(experiment, mesh)


def train_step(experiment: Experiment, stream: Stream, mesh: Mesh) -> Planned:
    """One training step on a batch of this stream.

    Raises:
      ValueError: parameters or rows do not divide over the mesh.
    """
    program = Program(experiment.settings, experiment.config, experiment.tasks, mesh)
    encodes = stream.shape.visual == "pixels"
    vae = _on(param_sharding.replicated(mesh), _vae_shapes(experiment)) if encodes else None
    frozen = program.abstract_frozen(vae)
    state = program.abstract_state
    batch = program.batch_shapes(stream.batch)
    counted = experiment.with_model(remat="none", attention_backend="xla")
    if experiment.settings.mesh.context != 1:
        counted = counted.with_mesh(context_attention="gather")
    return Planned(
        kind="train",
        stream=stream.name,
        share=stream.share,
        rows=stream.shape.rows,
        tokens=stream.tokens,
        pictures=stream.pictures,
        jitted=program.jitted,
        arguments=(state, batch, frozen, stream.heads),
        parts={
            "parameters": _bytes(state.params),
            "optimizer": _bytes(state.optimizer),
            "average": _bytes(state.ema),
            "batch": _bytes(batch),
            # The step needs only the encoder of the frozen VAE; the compiler drops the rest.
            "frozen_vae": _bytes(_encoder(vae)),
            **({} if program.adapters is None else {"frozen_model": _bytes(frozen.base)}),
        },
        plain=None if counted == experiment else lambda: train_step(counted, stream, mesh),
    )


def sampler(
    experiment: Experiment, mesh: Mesh, rows: int | None = None, dtype: str = ""
) -> Planned:
    """Guided generation of images with the settings of `config.samples`.

    Args:
      experiment, mesh: what to plan, and the devices.
      rows: number of images; None: one for every part of the batch on the mesh.
      dtype: of the parameters; '' keeps their own.
    """
    config, settings = experiment.config, experiment.settings.samples
    rows = rows or param_sharding.batch_parts(mesh)
    size = picture_size(settings.size, "config.samples.size")
    latent = config.space.latent_shape(1, size.height, size.width)
    split = param_sharding.batch_sharding(mesh)

    def sample(params: Any, tokens: Any, lengths: Any, negative: Any, noise: Any) -> Any:
        no_spans = jnp.zeros((rows, 0, 2), jnp.int32)
        return flow_sampler.sample(
            config,
            params,
            Prefix(tokens, lengths, no_spans),
            noise,
            negative=Prefix(negative, lengths, no_spans),
            guidance=settings.guidance,
            guidance_interval=settings.guidance_interval,
            steps=settings.steps,
            shift=settings.shift,
            solver=settings.solver,
            sharding=Activations(mesh, generation=True),
        )

    shapes = tuna.shapes(config)
    params = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, jnp.dtype(dtype or leaf.dtype), sharding=sharding
        ),
        shapes,
        param_sharding.shardings(shapes, mesh),
    )
    tokens = jax.ShapeDtypeStruct((rows, PROMPT), jnp.int32, sharding=split)
    lengths = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=split)
    noise = jax.ShapeDtypeStruct((rows, *latent), jnp.float32, sharding=split)
    return Planned(
        kind="sample",
        rows=rows,
        tokens=rows * (PROMPT + 1 + math.prod(latent[:3])),
        pictures=rows,
        jitted=jax.jit(sample, out_shardings=split),
        arguments=(params, tokens, lengths, tokens, noise),
        parts={"parameters": _bytes(params)},
    )


def decoder(experiment: Experiment, mesh: Mesh) -> Planned:
    """The VAE's decoder: one image of `config.samples.size` for every part of the batch on the mesh."""
    config = experiment.config.space
    rows = param_sharding.batch_parts(mesh)
    size = picture_size(experiment.settings.samples.size, "config.samples.size")
    split = param_sharding.batch_sharding(mesh)
    latents = jax.ShapeDtypeStruct(
        (rows, *config.latent_shape(1, size.height, size.width)), jnp.float32, sharding=split
    )
    params = _on(param_sharding.replicated(mesh), _vae_shapes(experiment))
    return Planned(
        kind="decode",
        rows=rows,
        tokens=0,
        pictures=rows,
        jitted=jax.jit(
            lambda params, x: latent_space.decode(config, params, x), out_shardings=split
        ),
        arguments=(params, latents),
        parts={"parameters": _bytes({k: params[k] for k in ("decoder", "latent_in")})},
    )


def _vae_shapes(experiment: Experiment) -> Any:
    return latent_space.shapes(experiment.config.space)


def _encoder(frozen: Any) -> Any:
    return None if not frozen else {key: frozen[key] for key in ("encoder", "moments")}


def _on(sharding: NamedSharding, tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def _bytes(tree: Any) -> float:
    """Bytes on one device of a tree of shapes with shardings."""
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )
