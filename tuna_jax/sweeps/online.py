"""Evaluation of a run by itself, every n steps: the tasks of sweeps, on the parameters as they lie on the devices."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from tuna_jax.inference import pipeline
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.parallel import param_sharding
from tuna_jax.parallel.mesh import make_mesh
from tuna_jax.sweeps import cell_store, registry, report_page, results
from tuna_jax.sweeps.cell_store import Cell
from tuna_jax.training.config import LoopSettings
from tuna_jax.training.loop import Evaluate

FOLDER = "evaluation"


def evaluator(
    run: LoopSettings, model: Callable[[Any], Tuna], workdir: str | Path
) -> Evaluate | None:
    """What the loop calls every `run.evaluate.every` steps; None where that is 0.

    Results go to `evaluation/` in the workdir, as those of a sweep do: results.jsonl, report.html, and the items of
    every cell. The numbers are returned, for the log. No parameter is copied.

    Args:
      run: the experiment.
      model: the run's model with these parameters.
      workdir: the run's.

    Raises:
      ValueError: a task or setting that there is not, a batch that does not divide over the mesh, several processes.
      Exception: what a task raises that cannot be made.
    """
    settings = run.evaluate
    if not settings.every:
        return None
    if jax.process_count() > 1:
        raise ValueError(
            "config.evaluate works within one process; beside a run of several, `python -m tuna_jax.evaluate "
            "--sweep=... --sweep.follow=True` measures its checkpoints as they appear"
        )
    registry.check(settings.tasks, settings.settings)
    if "ema" in settings.settings:
        raise ValueError("config.evaluate measures the averaged parameters; a sweep can vary 'ema'")
    mesh = make_mesh(run.mesh)
    param_sharding.check_batch(settings.batch, mesh)
    tasks = {name: registry.make_task(name, given) for name, given in settings.tasks.items()}
    folder = Path(workdir) / FOLDER

    def evaluate(step: int, params: Any) -> dict[str, float]:
        whole = pipeline.on_mesh(model(params), mesh)
        rows = []
        for chosen, (name, task) in itertools.product(
            registry.choices(settings.settings), tasks.items()
        ):
            identity = {"run": str(workdir), "step": step}
            determined_by = cell_store.determining(task, identity, chosen, settings.seed)
            key = cell_store.key_of(determined_by)
            cell = Cell(folder / "cells" / key)
            if key not in {row["key"] for row in rows}:
                # What a run found here that went on from an earlier step is not this one's.
                shutil.rmtree(cell.folder, ignore_errors=True)
                cell_store.fill(
                    task,
                    cell,
                    registry.configured(whole, chosen),
                    determined_by,
                    seed=settings.seed,
                    batch=settings.batch,
                    parts=param_sharding.batch_parts(mesh),
                    shown=settings.shown,
                )
            rows.append(
                {
                    "run": Path(workdir).name,
                    "step": step,
                    "task": name,
                    "settings": chosen,
                    "applied": {name: chosen[name] for name in chosen if name in task.uses},
                    "key": key,
                    "verdict": task.verdict,
                    "scores": results.scores(cell.records(), task.chance),
                    **cell.told(),
                }
            )
        before = [row for row in results.read(folder / results.FILE) if row["step"] < step]
        known = results.merged(before, rows)
        results.write(folder / results.FILE, known)
        note = registry.attribution(tasks.values())
        title = "Evaluation in training"
        report_page.write(folder / "report.html", title, known, folder / "cells", note)
        return _numbers(rows)

    return evaluate


def _numbers(rows: list[results.Row]) -> dict[str, float]:
    """Names and values for the log."""
    numbers = {}
    for row in report_page.unique(rows):
        choice = results.label(row)
        for metric, score in row["scores"].items():
            name = f"evaluate/{row['task']}/{metric}"
            numbers[f"{name}, {choice}" if choice else name] = score["value"]
    return numbers
