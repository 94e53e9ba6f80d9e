"""How soon a new process draws its first picture: with a cold compile cache once, then with a warm one, and where the
seconds go. Each process imports tuna_jax, loads the model, draws a picture and writes it; the second picture says what
is left when everything is compiled.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tuna_jax.perf import harness

STAGES = ("interpreter", "imports", "model", "first picture", "second picture")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.

    Attributes:
      model: as `tuna_jax.generate --model`; empty: the emoji model with random weights, made for it.
      prompt: what is drawn.
      rounds: processes with a warm compile cache.
    """

    model: str = ""
    prompt: str = "a red apple on a blue background"
    rounds: int = 3

    def __post_init__(self) -> None:
        harness.at_least(self, rounds=1)
        if self.model and not Path(self.model).exists():
            raise FileNotFoundError(f"no model at {self.model}")


@dataclasses.dataclass(frozen=True)
class Started:
    """Seconds of one kind of start, medians over its processes.

    Attributes:
      cache: 'cold' or 'warm'.
      stages: seconds of each of STAGES.
      total: from the process's start until the first picture was written.
      rounds: totals of each process.
    """

    cache: str
    stages: dict[str, float]
    total: float
    rounds: tuple[float, ...]


def measure(settings: Settings, folder: Path) -> list[Started]:
    """A cold start and warm ones, the compile cache in `folder`."""
    model = settings.model or str(_random_emoji(folder))
    runs = [_start(model, settings.prompt, folder) for _ in range(1 + settings.rounds)]
    return [_summary("cold", runs[:1]), _summary("warm", runs[1:])]


def table(started: list[Started]) -> str:
    """For a person."""
    head = "".join(f"{stage:>16}" for stage in STAGES)
    lines = [f"{'compile cache':<16}{'first picture after':>20}   of that{head}"]
    for one in started:
        row = "".join(f"{one.stages[stage]:>16.2f}" for stage in STAGES)
        lines.append(f"{one.cache:<16}{one.total:>18.2f} s{'':>10}{row}")
    return "\n".join(lines)


def record(started: list[Started], settings: Settings) -> dict[str, Any]:
    """As JSON."""
    return harness.record([], settings) | {"started": [dataclasses.asdict(one) for one in started]}


def draw_first(model: str, prompt: str, folder: str, begun: float) -> None:
    """What the new process does; prints the seconds of its stages as JSON.

    Args:
      model: path. prompt: what is drawn. folder: where pictures are written.
      begun: `time.time()` when this process was asked for.
    """
    marks = [begun, time.time()]
    from PIL import Image

    from tuna_jax.inference.pipeline import Tuna
    from tuna_jax.utils import compile_cache

    compile_cache.enable()
    marks.append(time.time())
    loaded = Tuna.load(model)
    marks.append(time.time())
    for number in range(2):
        (picture,) = loaded.generate_image([prompt], seed=number)
        Image.fromarray(picture).save(Path(folder) / f"picture_{number}.png")
        marks.append(time.time())
    seconds = [after - before for before, after in zip(marks, marks[1:], strict=False)]
    print(json.dumps(dict(zip(STAGES, seconds, strict=True))))


def _start(model: str, prompt: str, folder: Path) -> dict[str, float]:
    """Stages of one new process."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    call = f"draw_first({model!r}, {prompt!r}, {str(folder)!r}, {time.time()!r})"
    code = f"from tuna_jax.perf.startup import draw_first; {call}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ValueError(f"the new process failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _summary(cache: str, runs: list[dict[str, float]]) -> Started:
    totals = tuple(sum(run[stage] for stage in STAGES[:-1]) for run in runs)
    stages = {stage: statistics.median(run[stage] for run in runs) for stage in STAGES}
    return Started(cache, stages, statistics.median(totals), totals)


def _random_emoji(folder: Path) -> Path:
    """The emoji model with random weights, as a training run exports it."""
    from tuna_jax.training.weights_file import MODEL_FILE, export_model

    _, params = harness.random_model("emoji")
    settings = {"kind": "tuna", "model": {"preset": "emoji"}, "steps": 1}
    return export_model(folder / MODEL_FILE, params, settings, 0)
