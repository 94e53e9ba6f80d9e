"""Evaluation during training, every n steps: the tasks of sweeps on the run's parameters, which stay on the devices."""

from __future__ import annotations

import itertools
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuna_jax.inference import pipeline
from tuna_jax.inference.not_finite import NotFiniteError
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.parallel import leader, param_sharding
from tuna_jax.parallel.mesh import make_mesh
from tuna_jax.sweeps import cell_store, registry, report_page, results
from tuna_jax.sweeps.cell_store import Cell
from tuna_jax.training.config import LoopSettings
from tuna_jax.training.loop import Evaluate

FOLDER = "evaluation"


def evaluator(
    run: LoopSettings, model: Callable[[Any], Tuna], workdir: str | Path
) -> Evaluate | None:
    """The function that the training loop calls every `run.evaluate.every` steps; None if that is 0.

    Results are written to `evaluation/` in the workdir in the format of a sweep: results.jsonl, report.html, and the
    items of every cell. The function returns the numbers for the log. Parameters are not copied.

    Args:
      run: the experiment.
      model: makes the run's model from parameters.
      workdir: the run's.

    Raises:
      ValueError: an unknown task or setting, or a batch that does not divide over the mesh.
      Exception: any error of a task that cannot be created.
    """
    settings = run.evaluate
    if not settings.every:
        return None
    registry.check(settings.tasks, settings.settings)
    if "ema" in settings.settings:
        raise ValueError("config.evaluate uses the averaged parameters; a sweep can vary 'ema'")
    mesh = make_mesh(run.mesh)
    param_sharding.check_batch(settings.batch, mesh)
    tasks = {name: registry.make_task(name, options) for name, options in settings.tasks.items()}
    folder = Path(workdir) / FOLDER

    def evaluate(step: int, params: Any) -> dict[str, float]:
        sharded_model = leader.adopt(pipeline.on_mesh(model(params), mesh))
        return leader.together(lambda: measure(step, sharded_model))

    def measure(step: int, sharded_model: Tuna) -> dict[str, float]:
        rows = []
        for chosen, (name, task) in itertools.product(
            registry.choices(settings.settings), tasks.items()
        ):
            identity = {"run": str(workdir), "step": step}
            determined_by = cell_store.determining(task, identity, chosen, settings.seed)
            key = cell_store.key_of(determined_by)
            cell = Cell(folder / "cells" / key)
            if key not in {row["key"] for row in rows}:
                # A run that resumed from an earlier step may have left other results here.
                shutil.rmtree(cell.folder, ignore_errors=True)
                try:
                    cell_store.run_missing(
                        task,
                        cell,
                        registry.configured(sharded_model, chosen),
                        determined_by,
                        seed=settings.seed,
                        batch=settings.batch,
                        parts=param_sharding.batch_parts(mesh),
                        saved_items=settings.saved_items,
                    )
                except NotFiniteError as error:  # The run continues, with a warning.
                    warnings.warn(f"step {step}, {name}: {error}", stacklevel=2)
            rows.append(
                {
                    "run": Path(workdir).name,
                    "step": step,
                    "task": name,
                    "settings": chosen,
                    "applied": {name: chosen[name] for name in chosen if name in task.uses},
                    "key": key,
                    "verdict": task.verdict,
                    **results.outcome(cell.records(), task.chance),
                    **cell.files_entry(),
                }
            )
        earlier = [row for row in results.read(folder / results.FILE) if row["step"] < step]
        merged = results.merged(earlier, rows)
        results.write(folder / results.FILE, merged)
        note = registry.attribution(tasks.values())
        title = "Evaluation in training"
        report_page.write(folder / "report.html", title, merged, folder / "cells", note)
        return _numbers(rows)

    return evaluate


def _numbers(rows: list[results.Row]) -> dict[str, float]:
    """Names and values for the log."""
    numbers = {}
    for row in report_page.unique([row for row in rows if "error" not in row]):
        choice = results.label(row)
        for metric, score in row["scores"].items():
            name = f"evaluate/{row['task']}/{metric}"
            numbers[f"{name}, {choice}" if choice else name] = score["value"]
    return numbers
