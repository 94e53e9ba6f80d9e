"""Measures the time until a new process has generated its first image, by stages: once with a cold compile cache, then
with a warm one. Each process imports tuna_jax, loads the model, and generates and writes two images; the second image
shows the time when everything is compiled.
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

STAGES = ("interpreter", "imports", "model", "first image", "second image")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the measurement.

    Attributes:
      model: as for `tuna_jax.generate --model`; empty: an emoji model with random weights.
      prompt: of the images.
      rounds: processes with a warm compile cache.
    """

    model: str = ""
    prompt: str = "a red apple on a blue background"
    rounds: int = 3

    def __post_init__(self) -> None:
        harness.at_least(self, rounds=1)
        if self.model and not Path(self.model).exists():
            raise FileNotFoundError(f"model is {self.model}, and there is no such path")


@dataclasses.dataclass(frozen=True)
class Startup:
    """Seconds of a start with one state of the cache, medians over its processes.

    Attributes:
      cache: 'cold' or 'warm'.
      stages: seconds of each of STAGES.
      total: from the process's start until the first image was written.
      rounds: total of each process.
    """

    cache: str
    stages: dict[str, float]
    total: float
    rounds: tuple[float, ...]


def measure(settings: Settings, folder: Path) -> list[Startup]:
    """A cold start and then warm ones, with the compile cache in `folder`."""
    model = settings.model or str(_random_emoji(folder))
    runs = [_start(model, settings.prompt, folder) for _ in range(1 + settings.rounds)]
    return [_summary("cold", runs[:1]), _summary("warm", runs[1:])]


def table(startups: list[Startup]) -> str:
    """The timings as a table for a terminal."""
    head = "".join(f"{stage:>16}" for stage in STAGES)
    lines = [f"{'compile cache':<16}{'first image after':>20}   of that{head}"]
    for startup in startups:
        row = "".join(f"{startup.stages[stage]:>16.2f}" for stage in STAGES)
        lines.append(f"{startup.cache:<16}{startup.total:>18.2f} s{'':>10}{row}")
    return "\n".join(lines)


def record(startups: list[Startup], settings: Settings) -> dict[str, Any]:
    """The timings and settings, for JSON."""
    return harness.record([], settings) | {
        "started": [dataclasses.asdict(startup) for startup in startups]
    }


def generate_first(model: str, prompt: str, folder: str, begun: float) -> None:
    """Runs in the new process; prints the seconds of its stages as JSON.

    Args:
      model: path of the model.
      prompt: of the images.
      folder: where images are written.
      begun: `time.time()` when the process was started.
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
        (image,) = loaded.generate_image([prompt], seed=number)
        Image.fromarray(image).save(Path(folder) / f"image_{number}.png")
        marks.append(time.time())
    seconds = [after - before for before, after in zip(marks, marks[1:], strict=False)]
    print(json.dumps(dict(zip(STAGES, seconds, strict=True))))


def _start(model: str, prompt: str, folder: Path) -> dict[str, float]:
    """Seconds of the stages of one new process."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    call = f"generate_first({model!r}, {prompt!r}, {str(folder)!r}, {time.time()!r})"
    code = f"from tuna_jax.perf.startup import generate_first; {call}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = done.stderr.strip().split("\n")[-1]
        raise ValueError(f"the new process failed: {last}")
    return json.loads(done.stdout.strip().split("\n")[-1])


def _summary(cache: str, runs: list[dict[str, float]]) -> Startup:
    totals = tuple(sum(run[stage] for stage in STAGES[:-1]) for run in runs)
    stages = {stage: statistics.median(run[stage] for run in runs) for stage in STAGES}
    return Startup(cache, stages, statistics.median(totals), totals)


def _random_emoji(folder: Path) -> Path:
    """The emoji model with random weights, as a training run exports it."""
    from tuna_jax.training.weights_file import MODEL_FILE, export_model

    _, params = harness.random_model("emoji")
    settings = {"kind": "tuna", "model": {"preset": "emoji"}, "steps": 1}
    return export_model(folder / MODEL_FILE, params, settings, 0)
