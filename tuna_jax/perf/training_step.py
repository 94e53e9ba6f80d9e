"""Measures a training step, optionally with a baseline: joint loss of images and text, backward pass, clipping,
AdamW."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tuna_jax.config import TunaConfig
from tuna_jax.parallel.mesh import MeshSettings, make_mesh
from tuna_jax.perf import baseline, harness
from tuna_jax.training.config import LoopSettings
from tuna_jax.training.optimizer import OptimizerSettings
from tuna_jax.training.train_program import Program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the measurement. An empty string means the value of the preset.

    Attributes:
      preset: the model.
      dtype: of its activations.
      remat: the rematerialisation policy.
      attention: the attention backend.
      batch: rows per step.
      tokens: per row, with padding.
      words: tokens of the prompt, which have text labels.
      side: of the image's latent.
      frames: latent frames.
      ema: decay of the average of the parameters; 0: no average, as in a baseline.
      frozen: prefixes of parameters that are not trained, as in `OptimizerSettings.frozen`, separated by commas.
      steps: per round.
      rounds: of each variant.
      baseline: a Python file, see perf/baseline.py; empty: none.
    """

    preset: str = "mid"
    dtype: str = ""
    remat: str = ""
    attention: str = ""
    batch: int = 2
    tokens: int = 325
    words: int = 64
    side: int = 16
    frames: int = 1
    ema: float = 0.0
    frozen: str = ""
    steps: int = 2
    rounds: int = 5
    baseline: str = ""

    def __post_init__(self) -> None:
        least = {"batch": 1, "words": 1, "side": 1, "frames": 1, "steps": 1, "rounds": 1}
        needed = 5 + self.words + self.frames * self.side**2
        harness.at_least(self, **least, tokens=needed)


def measure(settings: Settings, folder: Path) -> list[harness.Group]:
    """One group: our step and the baseline's."""
    del folder
    config, params = harness.random_model(settings.preset, settings.dtype)
    changes = {"remat": settings.remat, "attention_backend": settings.attention}
    changes = {key: value for key, value in changes.items() if value}
    config = dataclasses.replace(config, **changes)
    batch, work = _batch(config, settings), settings.steps * settings.batch * settings.tokens
    other = baseline.load(settings.baseline, config, params, "train_step")
    # The step donates its state; the baseline has a copy of the parameters, so they are not needed again.
    variants = [_ours(config, params, batch, settings, work)]
    if other is not None:
        step = functools.partial(other.call, "train_step", batch)

        def run() -> None:
            for _ in range(settings.steps):
                step()

        memory = other.measured("train_step", batch).memory
        variants.append(
            harness.Variant(other.name, run, memory=memory, work=work, processor=other.processor)
        )
    name = f"a step of {settings.batch} rows of {settings.tokens} tokens; {settings.preset}, {config.compute_dtype}"
    group = harness.measure(f"{name}; {settings.steps} steps", "token", variants, settings.rounds)
    return [group]


table, record = harness.table, harness.record


def _ours(
    config: TunaConfig, params: Any, batch: dict[str, np.ndarray], settings: Settings, work: int
) -> harness.Variant:
    mesh = make_mesh(MeshSettings(data=1), jax.devices()[:1])
    frozen = tuple(name for name in settings.frozen.split(",") if name)
    optimizer = OptimizerSettings(warmup=1, ema=settings.ema, frozen=frozen)
    program = Program(LoopSettings(steps=10**6, optimizer=optimizer), config, ("t2i",), mesh)
    step, on_mesh = program.compile(batch, None), program.place(batch)
    state = program.initial(params)

    def run() -> None:
        nonlocal state
        for _ in range(settings.steps):
            state, metrics = step(state, on_mesh, None)
        jax.block_until_ready(metrics)  # pyright: ignore[reportPossiblyUnboundVariable]

    counted = settings.steps * program.model_flops(batch, None)
    memory = harness.program_memory(step)
    return harness.Variant("tuna_jax", run, flops=counted, memory=memory, work=work)


def _batch(config: TunaConfig, settings: Settings) -> dict[str, np.ndarray]:
    """Rows of random text and a random image, padded at the end."""
    random = np.random.default_rng(0)
    shape = (settings.batch, settings.tokens)
    tokens = random.integers(8, config.language.vocabulary, shape).astype(np.int32)
    index, offset = np.arange(settings.tokens), settings.words + 2
    span = np.asarray([offset, 1 + settings.frames * settings.side**2], np.int32)
    has_label = (index > 0) & (index <= settings.words)
    latents = (settings.batch, 1, settings.frames, settings.side, settings.side)
    latents = random.standard_normal((*latents, config.space.latent_channels))
    return {
        "tokens": tokens,
        "labels": np.where(has_label, tokens, -100).astype(np.int32),
        "spans": np.tile(span, (settings.batch, 1, 1)),
        "is_target": np.ones((settings.batch, 1), bool),
        "latents": latents.astype(np.float32),
        "stream": np.zeros(settings.batch, np.int32),
    }
