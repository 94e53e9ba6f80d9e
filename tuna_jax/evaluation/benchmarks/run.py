"""Generates the files of published benchmarks with a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tuna_jax.evaluation.benchmarks.generate import Draw, OnFailure, Plan, fill
from tuna_jax.evaluation.benchmarks.spec import Benchmark
from tuna_jax.evaluation.benchmarks.validate import Size
from tuna_jax.flow import EVERYWHERE
from tuna_jax.inference import batching, generation_config
from tuna_jax.inference.generation_config import SamplingOptions
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.utils.param_tree import flatten

_SAMPLED_VALUES = 64  # Values of each parameter that enter the fingerprint.


def run(
    model: Tuna,
    benchmark: Benchmark,
    folder: str | Path,
    *,
    sizes: Sequence[Size] = (),
    seed: int = 0,
    frames: int = 17,
    fps: float = 8.0,
    batch_size: int | None = None,
    shard: tuple[int, int] = (0, 1),
    first: int | None = None,
    progress: bool = True,
    on_failure: OnFailure | None = None,
    **sampling: Any,
) -> tuple[int, int]:
    """Generates the files of a benchmark's folder that are missing.

    Args:
      model: the model.
      benchmark: from `registry.read`.
      folder: the folder that the scorer will read.
      sizes: (height, width) of a sample; several for edits, each of which uses the nearest. Empty uses the model's own.
      seed: a sample depends on it, its prompt's place in the prompt file, and its number.
      frames: per video, 1 + 4k.
      fps: frames per second of a video file.
      batch_size: most samples per call; None uses `batching.rows_per_chunk`.
      shard: this process's number and the number of processes.
      first: the number of prompts, from the first; None for all.
      progress: whether to show a bar.
      on_failure: see `generate.fill`.
      **sampling: `guidance`, `guidance_interval`, `steps`, `shift`, `solver` and `negative` of `SamplingOptions`.

    Returns:
      The number of files generated, and of files that existed.

    Raises:
      ValueError: as `generate.fill`, and invalid options.
    """
    if len(sizes) > 1 and not benchmark.edits:
        raise ValueError(f"{benchmark.name} has one size; {len(sizes)} are given")
    chosen = tuple(sizes) or default_sizes(model, benchmark)
    generation_config.sampling({**sampling, "seed": seed})  # Before folders are claimed.
    frames = frames if benchmark.clips else 1
    tokens = max(
        int(np.prod(model.config.space.latent_shape(frames, *size)[:3])) for size in chosen
    )
    most = batch_size or batching.rows_per_chunk(tokens * (2 if benchmark.edits else 1))
    plan = Plan(chosen, frames, fps, seed, most, shard)
    settings = {"prompts": benchmark.digest(), **described(model, sampling)}
    if first is not None:
        benchmark = benchmark.first(first)
    draw = drawer(model, clips=benchmark.clips, frames=frames, batch_size=most, **sampling)
    more: dict[str, Any] = {"settings": settings, "progress": progress}
    return fill(benchmark, folder, draw, plan, on_failure=on_failure, **more)


def default_sizes(model: Tuna, benchmark: Benchmark) -> tuple[Size, ...]:
    """Sizes of samples where none are named: for edits the shapes that these were trained on, or the model's size."""
    shapes = tuple((height, width) for height, width in model.shapes.get("edit", ()))
    return shapes if benchmark.edits and shapes else (model.size,)


def drawer(
    model: Tuna, *, clips: bool, frames: int, batch_size: int, negative: str = "", **sampling: Any
) -> Draw:
    """A function that generates samples with a model; see `generate.Draw`."""

    def draw(
        prompts: list[str],
        seeds: list[tuple[int, int]],
        sources: list[np.ndarray] | None,
        size: Size,
    ) -> np.ndarray:
        options: SamplingOptions = {**sampling, "seed": seeds, "size": size}  # pyright: ignore[reportAssignmentType]
        options |= {"batch_size": batch_size, "negative": negative}
        if sources is not None:
            return model.edit_image(sources, prompts, **options)
        if clips:
            return model.generate_video(prompts, frames=frames, **options)
        return model.generate_image(prompts, **options)

    return draw


def described(model: Tuna, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Everything except sizes and seeds that determines a model's samples, as plain values."""
    defaults = model.samples
    values = {
        name: getattr(defaults, name) for name in ("guidance", "steps", "shift", "solver")
    } | {"negative": ""}
    # Only if it is set: folders that were begun before intervals existed can continue.
    if defaults.guidance_interval != EVERYWHERE:
        values["guidance_interval"] = list(defaults.guidance_interval)
    values |= {name: value for name, value in sampling.items() if value is not None}
    return {"model": fingerprint(model.params), **values}


def fingerprint(params: Any) -> str:
    """A hash of names, shapes, types and some evenly spaced values of all parameters, to distinguish checkpoints."""
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten(params).items()):
        digest.update(f"{name} {leaf.shape} {leaf.dtype}\n".encode())
        every = max(1, leaf.size // _SAMPLED_VALUES)
        digest.update(np.asarray(jax.numpy.ravel(leaf)[::every]).tobytes())
    return digest.hexdigest()[:16]
