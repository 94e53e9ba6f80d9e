"""What checkpoints cost a run: the time of steps with saves among them beside steps without, and of going on.

Windows of equally many steps take turns: without a save, and with saves at the interval that is asked about, in the
background or not. What is told is the median over rounds of the windows' ratios, so that a busy machine hits both.
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
    """What is measured.

    Attributes:
      preset: the model.
      rows: a batch. tokens: a row, a quarter of them a picture's.
      steps: of a window. every: steps between two saves.
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
                f"every is {self.every} and steps {self.steps}: no window would have a save in it"
            )


@dataclasses.dataclass(frozen=True)
class Costs:
    """What came out; seconds, medians over the rounds.

    Attributes:
      every: steps between two saves.
      bytes: of the state that a checkpoint holds.
      step: a step without saves.
      asynchronous, synchronous: a step's time with saves among them, as a ratio to one without.
      blocked: how long `save` holds the loop in the background mode. whole: until the checkpoint is written.
      restore: reading the newest checkpoint into a sharded state. fresh: making a new state instead.
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
    """Runs it; checkpoints are written below `folder`, which must be empty."""
    config = preset(settings.preset)
    mesh = make_mesh(MeshSettings(data=1), jax.devices()[:1])
    loop = LoopSettings(steps=10**6, optimizer=OptimizerSettings(warmup=1), keep=1)
    program = Program(loop, config, ("t2i",), mesh)
    batch = _batch(config, settings)
    run, placed = program.compile(batch, None), program.place(batch)
    current = program.initial()
    taken, blocked, whole = 0, [], []

    def window(saved: Checkpoints | None) -> float:
        """Seconds a step, until the last save of the window is written."""
        nonlocal current, taken
        begin = time.perf_counter()
        for number in range(1, settings.steps + 1):
            current, told = run(current, placed, None)
            taken += 1
            if number % settings.every == settings.every // 2:  # steps follow the last one too
                jax.block_until_ready(told)
                if saved is not None:
                    asked = time.perf_counter()
                    saved.save(taken, current, config={})
                    blocked.append(time.perf_counter() - asked)
        jax.block_until_ready(current)
        seconds = (time.perf_counter() - begin) / settings.steps
        if saved is not None:
            saved.wait()
            whole.append(time.perf_counter() - asked)  # pyright: ignore[reportPossiblyUnboundVariable]
        return seconds

    ratios: dict[bool, list[float]] = {True: [], False: []}
    plain: list[float] = []
    held: list[float] = []
    with (
        Checkpoints(folder / "background", keep=1) as background,
        Checkpoints(folder / "waiting", keep=1, asynchronous=False) as waiting,
    ):
        for saved in (None, background, waiting):  # the first of each sets things up
            window(saved)
        for _ in tqdm(range(settings.rounds), desc="checkpoints", unit="round"):
            for saved, mode in ((background, True), (waiting, False)):
                without = window(None)
                blocked.clear()
                ratios[mode].append(window(saved) / without)
                plain.append(without)
                if mode:
                    held.append(statistics.median(blocked))
        written = statistics.median(whole)
    template = state.abstract(program.shapes, program.shardings)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(current))
    with Checkpoints(folder / "background", keep=1) as saved:

        def again() -> Any:
            found = saved.restore(template)
            assert found is not None
            return found.state

        restore = _median(again, settings.rounds)
    fresh = _median(program.initial, settings.rounds)
    for kind in ("background", "waiting"):
        shutil.rmtree(folder / kind)
    return Costs(
        settings.every,
        size,
        statistics.median(plain),
        statistics.median(ratios[True]),
        statistics.median(ratios[False]),
        statistics.median(held),
        written,
        restore,
        fresh,
    )


def table(costs: Costs) -> str:
    """For a person."""
    saves = f"a save every {costs.every} steps"
    return "\n".join(
        [
            f"a state of {costs.bytes / 1e6:.1f} MB, {1e3 * costs.step:.0f} ms a step",
            f"step time with {saves} in the background   {costs.asynchronous:6.3f} of that without",
            f"step time with {saves}, waiting for it     {costs.synchronous:6.3f} of that without",
            f"a save in the background holds the loop for {1e3 * costs.blocked:.0f} ms, "
            f"and is written after {1e3 * costs.whole:.0f} ms",
            f"going on from a checkpoint: {1e3 * costs.restore:.0f} ms to read the state "
            f"(a fresh one: {1e3 * costs.fresh:.0f} ms), and a compilation, which the compile cache keeps",
        ]
    )


def record(costs: Costs, settings: Settings) -> dict[str, Any]:
    """As JSON."""
    return {"settings": dataclasses.asdict(settings), "costs": dataclasses.asdict(costs)}


def _median(what: Callable[[], Any], rounds: int) -> float:
    """Seconds, the median over rounds after a first one."""
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        jax.block_until_ready(jax.tree.leaves(what()))
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def _batch(config: TunaConfig, settings: Settings) -> dict[str, np.ndarray]:
    """Rows of a picture and words, all random."""
    random = np.random.default_rng(0)
    side = max(1, int((settings.tokens / 4) ** 0.5))
    shape = (settings.rows, settings.tokens)
    tokens = random.integers(0, config.language.vocabulary, shape).astype(np.int32)
    span = np.array([2, 1 + side * side], np.int32)
    latents = (settings.rows, 1, 1, side, side, config.vae.latent_channels)
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
