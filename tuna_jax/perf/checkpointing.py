"""Measures the cost of checkpoints: the time of steps with and without saves among them, and of resuming.

Windows of equally many steps alternate: without a save, and with saves at an interval, in the background or not.
Reported is the median over rounds of the windows' ratios, so that a busy machine affects both.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from tuna_jax.config import TunaConfig, preset
from tuna_jax.parallel.mesh import MeshSettings, make_mesh
from tuna_jax.training import state
from tuna_jax.training.checkpoints import Checkpoints
from tuna_jax.training.config import LoopSettings
from tuna_jax.training.optimizer import OptimizerSettings
from tuna_jax.training.train_program import Program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the measurement.

    Attributes:
      preset: the model.
      rows: per batch.
      tokens: per row, a quarter of them of an image.
      steps: per window.
      every: steps between two saves.
      rounds: windows of each kind.
    """

    preset: str = "emoji"
    rows: int = 8
    tokens: int = 64
    steps: int = 40
    every: int = 20
    rounds: int = 5

    def __post_init__(self) -> None:
        for key, least in {"rows": 1, "tokens": 16, "steps": 1, "every": 1, "rounds": 1}.items():
            if getattr(self, key) < least:
                raise ValueError(f"{key} is {getattr(self, key)}; it is at least {least}")
        if self.every > self.steps:
            raise ValueError(
                f"every is {self.every} and steps is {self.steps}: no window would have a save"
            )


@dataclasses.dataclass(frozen=True)
class Costs:
    """The measured costs; times are in seconds, medians over the rounds.

    Attributes:
      every: steps between two saves.
      bytes: of the saved state.
      step: time of a step without saves.
      asynchronous, synchronous: time of a step with saves, relative to one without.
      blocked: time for which `save` blocks the loop in the background mode.
      whole: time until the checkpoint is written.
      restore: time to read the newest checkpoint into a sharded state.
      fresh: time to create a new state.
    """

    every: int
    bytes: int
    step: float
    asynchronous: float
    synchronous: float
    blocked: float
    whole: float
    restore: float
    fresh: float


def measure(settings: Settings, folder: Path) -> Costs:
    """Runs the measurement; checkpoints are written below `folder`, which must be empty."""
    config = preset(settings.preset)
    mesh = make_mesh(MeshSettings(data=1), jax.devices()[:1])
    loop = LoopSettings(steps=10**6, optimizer=OptimizerSettings(warmup=1), keep=1)
    program = Program(loop, config, ("t2i",), mesh)
    batch = _batch(config, settings)
    run, on_mesh = program.compile(batch, None), program.place(batch)
    current = program.initial()
    steps_taken, blocked, whole = 0, [], []

    def window(saved: Checkpoints | None) -> float:
        """Seconds per step, until the last save of the window is written."""
        nonlocal current, steps_taken
        begin = time.perf_counter()
        for number in range(1, settings.steps + 1):
            current, metrics = run(current, on_mesh, None)
            steps_taken += 1
            if number % settings.every == settings.every // 2:  # steps follow the last save, too
                jax.block_until_ready(metrics)
                if saved is not None:
                    save_begin = time.perf_counter()
                    saved.save(steps_taken, current, config={})
                    blocked.append(time.perf_counter() - save_begin)
        jax.block_until_ready(current)
        seconds = (time.perf_counter() - begin) / settings.steps
        if saved is not None:
            saved.wait()
            whole.append(time.perf_counter() - save_begin)  # pyright: ignore[reportPossiblyUnboundVariable]
        return seconds

    ratios: dict[bool, list[float]] = {True: [], False: []}
    plain: list[float] = []
    blocked_medians: list[float] = []
    with (
        Checkpoints(folder / "background", keep=1) as background,
        Checkpoints(folder / "waiting", keep=1, asynchronous=False) as waiting,
    ):
        for saved in (None, background, waiting):  # the first of each initialises
            window(saved)
        for _ in tqdm(range(settings.rounds), desc="checkpoints", unit="round"):
            for saved, mode in ((background, True), (waiting, False)):
                without = window(None)
                blocked.clear()
                ratios[mode].append(window(saved) / without)
                plain.append(without)
                if mode:
                    blocked_medians.append(statistics.median(blocked))
        written = statistics.median(whole)
    template = state.abstract(program.shapes, program.shardings)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(current))
    with Checkpoints(folder / "background", keep=1) as saved:

        def read_newest() -> Any:
            restored = saved.restore(template)
            assert restored is not None
            return restored.state

        restore = _median(read_newest, settings.rounds)
    fresh = _median(program.initial, settings.rounds)
    for kind in ("background", "waiting"):
        shutil.rmtree(folder / kind)
    return Costs(
        settings.every,
        size,
        statistics.median(plain),
        statistics.median(ratios[True]),
        statistics.median(ratios[False]),
        statistics.median(blocked_medians),
        written,
        restore,
        fresh,
    )


def table(costs: Costs) -> str:
    """The costs as text for a terminal."""
    saves = f"a save every {costs.every} steps"
    return "\n".join(
        [
            f"a state of {costs.bytes / 1e6:.1f} MB, {1e3 * costs.step:.0f} ms per step",
            f"step time with {saves} in the background   {costs.asynchronous:6.3f} of that without saves",
            f"step time with {saves}, waiting for it     {costs.synchronous:6.3f} of that without saves",
            f"a save in the background blocks the loop for {1e3 * costs.blocked:.0f} ms "
            f"and is written after {1e3 * costs.whole:.0f} ms",
            f"resuming from a checkpoint: {1e3 * costs.restore:.0f} ms to read the state "
            f"(a new one: {1e3 * costs.fresh:.0f} ms), and a compilation, which the compile cache keeps",
        ]
    )


def record(costs: Costs, settings: Settings) -> dict[str, Any]:
    """The costs and settings, for JSON."""
    return {"settings": dataclasses.asdict(settings), "costs": dataclasses.asdict(costs)}


def _median(function: Callable[[], Any], rounds: int) -> float:
    """Median seconds of a call, after a first call."""
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        jax.block_until_ready(jax.tree.leaves(function()))
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def _batch(config: TunaConfig, settings: Settings) -> dict[str, np.ndarray]:
    """Rows of a random image and random text."""
    random = np.random.default_rng(0)
    side = max(1, int((settings.tokens / 4) ** 0.5))
    shape = (settings.rows, settings.tokens)
    tokens = random.integers(0, config.language.vocabulary, shape).astype(np.int32)
    span = np.array([2, 1 + side * side], np.int32)
    latents = (settings.rows, 1, 1, side, side, config.space.latent_channels)
    return {
        "tokens": tokens,
        "labels": np.where(np.arange(settings.tokens) > settings.tokens // 2, tokens, -100).astype(
            np.int32
        ),
        "spans": np.tile(span, (settings.rows, 1, 1)),
        "is_target": np.ones((settings.rows, 1), bool),
        "latents": random.standard_normal(latents).astype(np.float32),
        "stream": np.zeros(settings.rows, np.int32),
    }
