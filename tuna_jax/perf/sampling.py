"""Measures the generation of images, edits and clips: with the prefix cache, without it, and by a baseline.

Without the cache, sequences are padded to a length, as in the released code; with it they are not padded.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from tuna_jax.config import TunaConfig
from tuna_jax.inference.generation import flow_sampler, reference
from tuna_jax.inference.generation.prefix_cache import Prefix, prepared
from tuna_jax.perf import baseline, harness

TASKS = ("sample", "edit", "video")
_AFTER = 2  # Tokens after the noisy span: <eoi>, <eos>.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the measurement.

    Attributes:
      task: one of TASKS.
      preset: the model, with random weights.
      dtype: of its activations; empty: as in the preset.
      weights: dtype of the parameter matrices, 'float32' or 'bfloat16'; empty: float32.
      batch: images at once.
      prompt, negative: tokens of each.
      side: of the latent.
      frames: latent frames.
      steps: solver steps.
      guidance: scale.
      solver: 'euler' or 'heun'; a baseline always uses Euler.
      lengths: lengths that sequences are padded to without the cache, separated by commas; 0: no padding.
      longest: without the cache, ours runs only up to this length: its attention has length^2 scores per head.
      whole: for longer sequences the baseline takes only one step, and its time is scaled.
      rounds: of each variant.
      baseline: a Python file, see perf/baseline.py; empty: none.
    """

    task: str = "sample"
    preset: str = "mid"
    dtype: str = ""
    weights: str = ""
    batch: int = 1
    prompt: int = 64
    negative: int = 20
    side: int = 16
    frames: int = 1
    steps: int = 9
    guidance: float = 3.0
    solver: str = "euler"
    lengths: str = "0,1024"
    longest: int = 2048
    whole: int = 2048
    rounds: int = 5
    baseline: str = ""

    def __post_init__(self) -> None:
        least = {"batch": 1, "prompt": 1, "negative": 0, "side": 1, "frames": 1}
        harness.at_least(self, **least, steps=1, rounds=1)
        if self.weights not in ("", "float32", "bfloat16"):
            raise ValueError(f"weights is {self.weights!r}; give 'float32' or 'bfloat16'")
        if self.task == "edit" and self.batch > 1 and self.baseline:
            raise ValueError(f"batch is {self.batch}; the released code edits one image at a time")
        for length in harness.numbers(self.lengths, "lengths"):
            if length and length < self.least:
                raise ValueError(
                    f"lengths has {length}; these sequences have {self.least} tokens; 0 means no padding"
                )

    @property
    def span(self) -> int:
        """Tokens of an image or clip: the time token and the image tokens."""
        return 1 + self.frames * self.side**2

    @property
    def least(self) -> int:
        """Tokens of the longest sequence: <bos>, source, words, <boi>, span, <eoi>, <eos>."""
        source = self.span + 2 if self.task == "edit" else 0
        return 2 + source + max(self.prompt, self.negative) + self.span + _AFTER


def measure(settings: Settings, folder: Path) -> list[harness.Group]:
    """One group: ours, ours without the cache at each length, and the baseline at each length."""
    del folder
    config, params = harness.random_model(settings.preset, settings.dtype, settings.weights)
    other = baseline.load(settings.baseline, config, params, "sample")
    params = prepared(config, params)  # as `Tuna` does on first use
    random = np.random.default_rng(0)
    shape = (settings.batch, settings.frames, settings.side, settings.side)
    shape = (*shape, config.space.latent_channels)
    noise = random.standard_normal(shape).astype(np.float32)
    source = random.standard_normal(shape).astype(np.float32) if settings.task == "edit" else None
    words = random.integers(8, config.language.vocabulary, (2, settings.batch, settings.prompt))
    rows = [words[0].tolist(), words[1, :, : settings.negative].tolist()]
    rows = [[_row(row, settings) for row in side] for side in rows]
    positive, negative = (_prefix(side, source, settings) for side in rows)

    def sampling(sampler: Callable[..., Any], **more: Any) -> Callable[..., Any]:
        def run(params: Any, positive: Prefix, negative: Prefix, noise: Any) -> Any:
            how = {"steps": settings.steps, "guidance": settings.guidance} | more
            return sampler(config, params, positive, noise, negative=negative, **how)

        return run

    arguments = (params, positive, negative, jnp.asarray(noise))
    solver = {"solver": settings.solver}
    ours = sampling(flow_sampler.sample, **solver)
    variants = [harness.compiled("tuna_jax", ours, *arguments, work=settings.batch)]
    lengths = [length or settings.least for length in harness.numbers(settings.lengths, "lengths")]
    for length in lengths:
        if length <= settings.longest:
            plain = sampling(reference.sample, length=length, **solver)
            name = f"without the cache, {length} tokens"
            variants.append(harness.compiled(name, plain, *arguments, work=settings.batch))
    notes: dict[str, Any] = {"difference from the baseline": {}}
    if other is not None:
        generated = sampling(flow_sampler.sample)(*arguments)
        for length in lengths:
            request = _request(settings, rows, noise, source, length)
            variant, theirs = _baseline_variant(other, request, settings)
            variants.append(variant)
            if variant.part == 1:
                difference = baseline.difference(generated, theirs)
                notes["difference from the baseline"][length] = difference
    return [harness.measure(_name(settings, config), "image", variants, settings.rounds, notes)]


table, record = harness.table, harness.record


def _name(settings: Settings, config: TunaConfig) -> str:
    """A description of the task."""
    outputs = {"sample": "images", "edit": "edits", "video": "clips"}[settings.task]
    return (
        f"{outputs} at a time: {settings.batch}; {settings.preset}, {config.compute_dtype}; latent "
        f"{settings.frames}x{settings.side}x{settings.side}; {settings.steps} steps, {settings.solver}"
    )


def _row(words: list[int], settings: Settings) -> list[int]:
    """A row up to and including <boi>; 1 is every marker, and 3 the tokens that a span replaces."""
    if settings.task == "edit":
        return [1, 1, *[3] * settings.span, 1, *words, 1]
    return [1, *words, 1]


def _prefix(rows: list[list[int]], source: np.ndarray | None, settings: Settings) -> Prefix:
    """Rows as prefixes of generation, each with a clean source if there is one."""
    lengths = np.asarray([len(row) for row in rows], np.int32)
    spans = np.zeros((len(rows), 0, 2), np.int32)
    if source is not None:
        spans = np.tile(np.asarray([[2, settings.span]], np.int32), (len(rows), 1, 1))
    return Prefix(
        jnp.asarray(rows, jnp.int32),
        jnp.asarray(lengths),
        jnp.asarray(spans),
        None if source is None else jnp.asarray(source[:, None]),
    )


def _request(
    settings: Settings,
    rows: list[list[list[int]]],
    noise: np.ndarray,
    source: np.ndarray | None,
    length: int,
) -> dict[str, Any]:
    """The request for a baseline."""
    steps = settings.steps if length <= settings.whole else 1
    request = {"positive": rows[0], "negative": rows[1], "noise": noise, "length": length}
    request |= {"points": settings.steps + 1, "steps": steps, "shift": 3.0}
    request |= {"guidance": settings.guidance}
    return request if source is None else {**request, "source": source}


def _baseline_variant(
    other: baseline.Baseline, request: dict[str, Any], settings: Settings
) -> tuple[harness.Variant, Any]:
    """The baseline at one length, and the latents that it generated."""
    first = other.measured("sample", request)
    part = request["steps"] / settings.steps
    name = f"{other.name}, {request['length']} tokens"
    run = functools.partial(other.call, "sample", request)
    variant = harness.Variant(name, run, memory=first.memory, part=part, work=settings.batch)
    return dataclasses.replace(variant, processor=other.processor), first.result
