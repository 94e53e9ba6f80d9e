"""Measures a trained model: draws unseen scenes, asks questions, judges, and writes a report.

Examples:

    # The demo's model; writes runs/demo/report.html, runs/demo/summary.json, runs/demo/sheets/:
    python -m tuna_jax.evaluate --workdir=runs/demo

    # A quick look with fewer pictures, and other settings of the sampler:
    python -m tuna_jax.evaluate --workdir=runs/demo --output=runs/look --drawings=64 --answers=64 \\
        --guidance=3 --points=20

    # Scores over steps, of all checkpoints that were kept, and of another run beside them; writes learning.png:
    python -m tuna_jax.evaluate --workdir=runs/emoji_all --curve --beside=runs/emoji_generation --drawings=64

    # A sweep: checkpoints x tasks x settings on all devices, as the file says. Killed, it goes on where it was;
    # repeated, it is instant. Writes results.jsonl and report.html to runs/emoji_all/sweeps/emoji:
    python -m tuna_jax.evaluate --sweep=experiments/sweeps/emoji.py --workdir=runs/emoji_all

    # The same of two runs, compared item by item:
    python -m tuna_jax.evaluate --sweep=experiments/sweeps/emoji.py --workdir=runs/emoji_all --beside=runs/other \\
        --sweep.checkpoints=4000,8000

All that is asked for was held out of training. Every score comes with its chance level, its count
and a 95 % interval; judges were never trained by us.
"""

from __future__ import annotations

import dataclasses
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging
from ml_collections import config_flags

from tuna_jax.cli.config_flags import parse_flags
from tuna_jax.utils import malloc

if TYPE_CHECKING:  # JAX is not imported before flags are read.
    from tuna_jax.emoji.evaluation.suite import Evaluation

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of a training run, or its model.safetensors."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the report; by default the workdir.")
_DRAWINGS = flags.DEFINE_integer("drawings", 256, "Pictures a task.", lower_bound=1)
_ANSWERS = flags.DEFINE_integer("answers", 256, "Questions for naming; others a quarter.", 4)
_GUIDANCE = flags.DEFINE_float("guidance", None, "Guidance scale; by default the run's own.")
_POINTS = flags.DEFINE_integer("points", None, "Points of the time grid; by default the run's own.")
_STARTED = flags.DEFINE_float(
    "started", None, "When it all began, in seconds since 1970: the report tells the minutes since."
)
_CURVE = flags.DEFINE_bool(
    "curve",
    False,
    "Measure every checkpoint that was kept (once: learning.jsonl in the workdir), and draw scores over steps.",
)
_BESIDE = flags.DEFINE_list(
    "beside", [], "With --curve and --sweep: workdirs of other runs to show beside it."
)
_SWEEP = config_flags.DEFINE_config_file(
    "sweep",
    None,
    "A sweep's file, such as experiments/sweeps/emoji.py; --sweep.KEY=VALUE overrides a key.",
)
flags.mark_flag_as_required("workdir")


def main(arguments: Sequence[str]) -> None:
    """Runs the command."""
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument {arguments[1]!r}")
    logging.set_verbosity(logging.WARNING)
    try:
        if _SWEEP.value is not None:
            _sweep()
        else:
            _learning() if _CURVE.value else _evaluate()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


class _Measure:
    """Measures parameters of one world; the judge is made once for all."""

    def __init__(self) -> None:
        from tuna_jax.emoji.evaluation.judges import ObjectJudge

        self._judge = ObjectJudge()

    def __call__(self, world: Any, params: Any, settings: dict[str, Any]) -> Evaluation:
        from tuna_jax.emoji.evaluation import run, suite

        tasks = run.task_functions(world, params, settings)
        options: dict[str, Any] = {
            "judge": self._judge,
            "reconstruct": world.reconstruct,
            "generations": _DRAWINGS.value,
            "questions": _ANSWERS.value,
            "log": lambda text: print(f"  {text}", file=sys.stderr, flush=True),
        }
        return suite.measure(tasks, **options)


def _load(source: Path) -> tuple[Any, Any, dict[str, Any]]:
    """What was trained, with the sampling that the flags ask for."""
    from tuna_jax.emoji import model_bundle

    world, params, settings = model_bundle.load_trained(source)
    changes = {"guidance": _GUIDANCE.value, "points": _POINTS.value}
    samples = dataclasses.replace(
        world.samples, **{name: value for name, value in changes.items() if value is not None}
    )
    return dataclasses.replace(world, samples=samples), params, settings


def _evaluate() -> None:
    from tuna_jax.emoji.evaluation import report

    begun = time.time() if _STARTED.value is None else _STARTED.value
    source = Path(str(_WORKDIR.value))
    world, params, settings = _load(source)
    found = _Measure()(world, params, settings)
    workdir = source if source.is_dir() else source.parent
    output = Path(_OUTPUT.value) if _OUTPUT.value else workdir
    metrics, samples = workdir / "metrics.jsonl", world.samples
    page = report.write(
        output,
        found,
        lead="One model, trained from nothing on this machine, draws emoji scenes from captions "
        "and answers questions about them.",
        metrics=metrics if metrics.exists() else None,
        minutes=(time.time() - begun) / 60,
        facts={
            "parameters": f"{world.parameter_count(params):,}",
            "training steps": settings["steps"],
            "sampling": f"{samples.points} points, {samples.solver}, guidance {samples.guidance:g}",
            "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
        },
    )
    for name, score in found.scores.items():
        low, high = score.ci95
        print(
            f"{name:34} {100 * score.value:5.1f} %  [{100 * low:.1f}, {100 * high:.1f}]  "
            f"chance {100 * score.chance:.1f} %  n={score.count}"
        )
    for name, value in {"vae_psnr_db": found.vae_psnr_db, **found.decibels}.items():
        print(f"{name:34} {value:5.1f}")
    print(page)


def _learning() -> None:
    """Measures every checkpoint that was kept and not measured yet, of this run and those beside it."""
    from tuna_jax.emoji import model_bundle
    from tuna_jax.emoji.evaluation import learning_curves

    measure, runs = _Measure(), {}
    for workdir in [Path(str(_WORKDIR.value)), *map(Path, _BESIDE.value)]:
        world, _, settings = _load(workdir)
        known = learning_curves.read(workdir)
        for step, path in model_bundle.checkpoints(workdir).items():
            if step not in known:
                print(f"{workdir.name}, step {step}", file=sys.stderr, flush=True)
                found = measure(world, model_bundle.load_checkpoint(path), settings)
                learning_curves.append(workdir, step, found.scores)
        curve = learning_curves.read(workdir)
        if not curve:
            raise FileNotFoundError(f"{workdir} has no checkpoints left to measure")
        runs[workdir.name] = curve
    output = Path(_OUTPUT.value or str(_WORKDIR.value))
    output.mkdir(parents=True, exist_ok=True)
    picture = output / "learning.png"
    picture.write_bytes(learning_curves.plot(runs))
    print(learning_curves.table(runs))
    print(picture)


def _sweep() -> None:
    """Measures all cells of a sweep; the status is 1 if one of them failed."""
    from tuna_jax.sweeps import runner

    logging.set_verbosity(logging.ERROR)  # Orbax warns at every checkpoint that is opened.
    runs = [Path(str(_WORKDIR.value)), *map(Path, _BESIDE.value)]
    try:
        failed = runner.command(
            _SWEEP.value.to_dict(), runs, Path(_OUTPUT.value) if _OUTPUT.value else None
        )
    except KeyboardInterrupt:
        sys.exit("stopped as asked; the same command goes on from here")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    malloc.keep()
    app.run(main, flags_parser=parse_flags)
