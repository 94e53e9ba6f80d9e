"""Measures what a run costs beyond its steps: checkpoints, log lines, the watchdog, and resuming.

Windows of equally many steps alternate: nothing but steps, and steps with one of these. Reported is the median over
rounds of the windows' ratios, so that a busy machine affects both.
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
from tuna_jax.training import metrics, state, step
from tuna_jax.training.checkpoints import Checkpoints
from tuna_jax.training.config import LocalSaveSettings, LoopSettings
from tuna_jax.training.local_saves import LocalSaves
from tuna_jax.training.optimizer import OptimizerSettings
from tuna_jax.training.train_program import Program
from tuna_jax.training.watchdog import Watchdog, WatchdogSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the measurement.

    Attributes:
      preset: the model.
      rows: per batch.
      tokens: per row, a quarter of them of an image.
      steps: per window.
      every: steps between two saves.
      log_every: steps between two log lines.
      rounds: windows of each kind.
    """

    preset: str = "emoji"
    rows: int = 8
    tokens: int = 64
    steps: int = 40
    every: int = 20
    log_every: int = 10
    rounds: int = 5

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self)[1:]:
            least = 16 if field.name == "tokens" else 1
            if getattr(self, field.name) < least:
                raise ValueError(
                    f"{field.name} is {getattr(self, field.name)}; it is at least {least}"
                )
        for key, content in {"every": "save", "log_every": "log line"}.items():
            if getattr(self, key) > self.steps:
                raise ValueError(
                    f"{key} is {getattr(self, key)} and steps is {self.steps}: no window would have a {content}"
                )


@dataclasses.dataclass(frozen=True)
class Costs:
    """The measured costs; times are in seconds, medians over the rounds.

    Attributes:
      every, log_every: steps between two saves, and between two log lines.
      bytes: of the saved state.
      step: time of a step and nothing else.
      asynchronous, synchronous: time of a step with saves, relative to one without.
      local: time of a step with local saves (`training/local_saves.py`), relative to one without.
      logging: time of a step with log lines (`metrics.jsonl`, TensorBoard), relative to one without.
      watchdog: time of a step with the watchdog, relative to one without.
      blocked: time for which `save` blocks the loop in the background mode.
      whole: time until the checkpoint is written.
      restore: time to read the newest checkpoint into a sharded state.
      fresh: time to create a new state.
    """

    every: int
    log_every: int
    bytes: int
    step: float
    asynchronous: float
    synchronous: float
    local: float
    logging: float
    watchdog: float
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

    def window(
        saved: Checkpoints | LocalSaves | None = None,
        log: metrics.MetricsLog | None = None,
        watchdog: Watchdog | None = None,
    ) -> float:
        """Seconds per step, until the last save of the window is written."""
        nonlocal current, steps_taken
        begin = time.perf_counter()
        for number in range(1, settings.steps + 1):
            current, sums = run(current, on_mesh, None)
            steps_taken += 1
            if watchdog is not None:
                watchdog.step(steps_taken)
            if log is not None and number % settings.log_every == 0:
                log.write(steps_taken, step.summarize(sums, ("t2i",)))
            if number % settings.every == settings.every // 2:  # steps follow the last save, too
                jax.block_until_ready(sums)
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

    ratios: dict[str, list[float]] = {}
    plain: list[float] = []
    blocked_medians: list[float] = []
    log = metrics.MetricsLog(folder / "log", steps=10**6, bar=False)
    with (
        Checkpoints(folder / "background", keep=1) as background,
        Checkpoints(folder / "waiting", keep=1, asynchronous=False) as waiting,
        LocalSaves(
            LocalSaveSettings(every=1, folder=str(folder / "local")), folder / "log"
        ) as local,
        Watchdog(WatchdogSettings(), folder / "log", 0) as watchdog,
    ):
        kinds: dict[str, dict[str, Any]] = {
            "asynchronous": {"saved": background},
            "synchronous": {"saved": waiting},
            "local": {"saved": local},
            "logging": {"log": log},
            "watchdog": {"watchdog": watchdog},
        }
        for extra in ({}, *kinds.values()):  # the first of each initialises
            window(**extra)
        for _ in tqdm(range(settings.rounds), desc="checkpoints", unit="round"):
            for kind, extra in kinds.items():
                without = window()
                blocked.clear()
                ratios.setdefault(kind, []).append(window(**extra) / without)
                plain.append(without)
                if kind == "asynchronous":
                    blocked_medians.append(statistics.median(blocked))
        written = statistics.median(whole)
    log.close()
    template = state.abstract(program.shapes, program.shardings)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(current))
    with Checkpoints(folder / "background", keep=1) as saved:

        def read_newest() -> Any:
            restored = saved.restore(template)
            assert restored is not None
            return restored.state

        restore = _median(read_newest, settings.rounds)
    fresh = _median(program.initial, settings.rounds)
    for kind in ("background", "waiting", "local", "log"):
        shutil.rmtree(folder / kind)
    return Costs(
        every=settings.every,
        log_every=settings.log_every,
        bytes=size,
        step=statistics.median(plain),
        **{kind: statistics.median(values) for kind, values in ratios.items()},
        blocked=statistics.median(blocked_medians),
        whole=written,
        restore=restore,
        fresh=fresh,
    )


def table(costs: Costs) -> str:
    """The costs as text for a terminal."""
    saves = f"a save every {costs.every} steps"
    return "\n".join(
        [
            f"a state of {costs.bytes / 1e6:.1f} MB, {1e3 * costs.step:.0f} ms per step",
            f"step time with {saves} in the background   {costs.asynchronous:6.3f} of that without saves",
            f"step time with {saves}, waiting for it     {costs.synchronous:6.3f} of that without saves",
            f"step time with a local save every {costs.every} steps        {costs.local:6.3f} of that without saves",
            f"step time with a log line every {costs.log_every} steps   {costs.logging:6.3f} of that without",
            f"step time with the watchdog   {costs.watchdog:6.3f} of that without",
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
