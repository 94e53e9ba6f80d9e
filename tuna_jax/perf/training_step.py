"""How fast a training step is, beside a peer's: joint loss of pictures and words, backward, clipping, AdamW."""

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
    """What is measured.

    Attributes:
      preset: the model. dtype: of its activations; empty: the preset's. remat: what is recomputed; empty: the preset's.
      attention: backend; empty: the preset's.
      batch: rows of a step. tokens: of a row, padded. words: of its prompt, which the text loss is about.
      side: of the picture's latent. frames: latent frames.
      ema: decay of the average of the parameters; 0: none, as a peer keeps none.
      frozen: what is not trained, as `OptimizerSettings.frozen` has it, with commas.
      steps: of a round. rounds: of each side. peer: a Python file, see speed_peer.py.
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
    peer: str = ""

    def __post_init__(self) -> None:
        least = {"batch": 1, "words": 1, "side": 1, "frames": 1, "steps": 1, "rounds": 1}
        needed = 5 + self.words + self.frames * self.side**2
        harness.at_least(self, **least, tokens=needed)


def measure(settings: Settings, folder: Path) -> list[harness.Group]:
    """One group: ours and the peer's."""
    del folder
    config, params = harness.random_model(settings.preset, settings.dtype)
    changes = {"remat": settings.remat, "attention_backend": settings.attention}
    changes = {key: value for key, value in changes.items() if value}
    config = dataclasses.replace(config, **changes)
    batch, work = _batch(config, settings), settings.steps * settings.batch * settings.tokens
    peer = baseline.load(settings.peer, config, params, "train_step")
    # The step gives its state away, and a peer has only a copy of these parameters in a file: nobody wants them again.
    sides = [_ours(config, params, batch, settings, work)]
    if peer is not None:
        step = functools.partial(peer.call, "train_step", batch)

        def run() -> None:
            for _ in range(settings.steps):
                step()

        memory = peer.watched("train_step", batch).memory
        side = harness.Side(peer.name, run, memory=memory, work=work, processor=peer.processor)
        sides.append(side)
    name = f"a step of {settings.batch} rows of {settings.tokens} tokens; {settings.preset}, {config.compute_dtype}"
    group = harness.measure(f"{name}; {settings.steps} steps", "token", sides, settings.rounds)
    return [group]


table, record = harness.table, harness.record


def _ours(
    config: TunaConfig, params: Any, batch: dict[str, np.ndarray], settings: Settings, work: int
) -> harness.Side:
    mesh = make_mesh(MeshSettings(data=1), jax.devices()[:1])
    frozen = tuple(name for name in settings.frozen.split(",") if name)
    optimizer = OptimizerSettings(warmup=1, ema=settings.ema, frozen=frozen)
    program = Program(LoopSettings(steps=10**6, optimizer=optimizer), config, ("t2i",), mesh)
    step, placed = program.compile(batch, None), program.place(batch)
    state = program.initial(params)

    def run() -> None:
        nonlocal state
        for _ in range(settings.steps):
            state, told = step(state, placed, None)
        jax.block_until_ready(told)  # pyright: ignore[reportPossiblyUnboundVariable]

    counted = settings.steps * program.model_flops(batch, None)
    memory = harness.program_memory(step)
    return harness.Side("tuna_jax", run, flops=counted, memory=memory, work=work)


def _batch(config: TunaConfig, settings: Settings) -> dict[str, np.ndarray]:
    """Rows of words and a picture, all random, padded at their ends."""
    random = np.random.default_rng(0)
    shape = (settings.batch, settings.tokens)
    tokens = random.integers(8, config.language.vocabulary, shape).astype(np.int32)
    index, offset = np.arange(settings.tokens), settings.words + 2
    span = np.asarray([offset, 1 + settings.frames * settings.side**2], np.int32)
    said = (index > 0) & (index <= settings.words)
    latents = (settings.batch, 1, settings.frames, settings.side, settings.side)
    latents = random.standard_normal((*latents, config.vae.latent_channels))
    return {
        "tokens": tokens,
        "labels": np.where(said, tokens, -100).astype(np.int32),
        "spans": np.tile(span, (settings.batch, 1, 1)),
        "is_target": np.ones((settings.batch, 1), bool),
        "latents": latents.astype(np.float32),
        "stream": np.zeros(settings.batch, np.int32),
    }
