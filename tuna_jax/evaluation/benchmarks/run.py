"""Published benchmarks drawn by a model: the model's side of `evaluation/benchmarks`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tuna_jax.evaluation.benchmarks.generate import Draw, Plan, fill
from tuna_jax.evaluation.benchmarks.spec import Benchmark
from tuna_jax.evaluation.benchmarks.validate import Size
from tuna_jax.flow import EVERYWHERE
from tuna_jax.inference import batching
from tuna_jax.inference.generation_config import SamplingOptions
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.utils.param_tree import flatten

_LOOKED_AT = 64  # numbers of each parameter that the fingerprint is made of


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
    **sampling: Any,
) -> tuple[int, int]:
    """Draws a benchmark's folder, or what is missing of it.

    Args:
      model: who draws.
      benchmark: what, of `table.read`.
      folder: what the scorer will read.
      sizes: (height, width) of a sample; several for edits, each of which takes the nearest. Empty: the model's own.
      seed: a sample depends on it, its prompt's place in the prompt file and its number.
      frames: of a clip, 1 + 4k.
      fps: frames a second of a clip's file.
      batch_size: most samples at once; None takes what `batching.rows_per_chunk` allows.
      shard: this process's number and how many there are.
      first: only so many of the first prompts.
      progress: whether to show a bar.
      **sampling: `guidance`, `guidance_interval`, `steps`, `shift`, `solver` and `negative` of `Sampling`.

    Returns:
      How many files were drawn, and how many were there already.

    Raises:
      ValueError: as `drawing.fill`, and options that do not fit.
    """
    if len(sizes) > 1 and not benchmark.edits:
        raise ValueError(f"{benchmark.name} is drawn at one size; {len(sizes)} are given")
    chosen = tuple(sizes) or (model.size,)
    frames = frames if benchmark.clips else 1
    tokens = max(int(np.prod(model.config.vae.latent_shape(frames, *size)[:3])) for size in chosen)
    most = batch_size or batching.rows_per_chunk(tokens * (2 if benchmark.edits else 1))
    plan = Plan(chosen, frames, fps, seed, most, shard)
    settings = {"prompts": benchmark.digest(), **described(model, sampling)}
    if first is not None:
        benchmark = benchmark.first(first)
    draw = drawer(model, clips=benchmark.clips, frames=frames, batch_size=most, **sampling)
    return fill(benchmark, folder, draw, plan, settings=settings, progress=progress)


def drawer(
    model: Tuna, *, clips: bool, frames: int, batch_size: int, negative: str = "", **sampling: Any
) -> Draw:
    """What draws samples with a model; see `drawing.Draw`."""

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
    """What decides how samples of a model look, beside sizes and seeds: plain values for a file."""
    usual = model.samples
    values = {name: getattr(usual, name) for name in ("guidance", "steps", "shift", "solver")} | {
        "negative": ""
    }
    # Said only where it matters: folders that were begun before there were intervals go on.
    if usual.guidance_interval != EVERYWHERE:
        values["guidance_interval"] = list(usual.guidance_interval)
    values |= {name: value for name, value in sampling.items() if value is not None}
    return {"model": fingerprint(model.params), **values}


def fingerprint(params: Any) -> str:
    """A hash of names, shapes, types and some evenly spread numbers of all parameters: it tells checkpoints apart."""
    found = hashlib.sha256()
    for name, leaf in sorted(flatten(params).items()):
        found.update(f"{name} {leaf.shape} {leaf.dtype}\n".encode())
        every = max(1, leaf.size // _LOOKED_AT)
        found.update(np.asarray(jax.numpy.ravel(leaf)[::every]).tobytes())
    return found.hexdigest()[:16]
