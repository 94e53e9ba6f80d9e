"""Sweeps: checkpoints times tasks times settings on a mesh, from an experiment file to a report.

All results are stored under `OUTPUT/cells`, named by a hash of what determines them; `results.jsonl` and `report.html`
are derived from these. So a killed sweep resumes where it stopped, and a repeated one finds all results.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh
from tqdm import tqdm

from tuna_jax.inference import loading
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.parallel import param_sharding
from tuna_jax.parallel.mesh import MeshSettings, make_mesh
from tuna_jax.sweeps import cell_store, registry, report_page, results
from tuna_jax.sweeps import checkpoints as run_checkpoints
from tuna_jax.sweeps.cell_store import Cell
from tuna_jax.sweeps.checkpoints import Checkpoint, Hashes
from tuna_jax.sweeps.results import Row
from tuna_jax.sweeps.task import Task
from tuna_jax.training.workdir import locked
from tuna_jax.utils import seeds
from tuna_jax.utils.config_parsing import parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """The settings of a sweep.

    Attributes:
      name: of the folder with the results, and the heading of the report.
      checkpoints: steps; empty for every checkpoint that the run has.
      follow: evaluate every checkpoint of a run that is still training as it appears.
      until: with `follow`, the last step to wait for; 0 for the run's last step.
      patience: with `follow`, minutes without a new checkpoint after which the sweep ends.
      tasks: by the name in the results: the options of a task, with `kind`, its name in the registry. `kind` may be
        omitted if it equals the name.
      settings: by name (guidance, guidance_interval, steps, solver, shift, size, ema), the values to try, in all
        combinations. Settings that are not named keep the run's values, and parameters are averaged ones.
      batch: rows per call.
      seed: of the noise.
      saved_items: of how many items images are saved.
      vae, tokenizer: as for `Tuna.load`, for converted models that lack one, or to try another; empty for the run's
          own.
      mesh: sizes of the mesh axes; the default lets `inference/layouts.py` choose for each model.
      dtype: of the parameters, 'float32' or 'bfloat16'; empty keeps the stored one if the model fits so.
    """

    name: str
    checkpoints: tuple = ()
    follow: bool = False
    until: int = 0
    patience: float = 30.0
    tasks: dict
    settings: dict = dataclasses.field(default_factory=dict)
    batch: int = 32
    seed: int = 7
    saved_items: int = 8
    vae: str = ""
    tokenizer: str = ""
    mesh: MeshSettings = MeshSettings()
    dtype: str = ""

    def __post_init__(self) -> None:
        registry.check(self.tasks, self.settings)
        seeds.check(self.seed, "config.seed")


@dataclasses.dataclass(frozen=True)
class _Planned:
    """A cell to run, and its row of results without scores."""

    row: Row
    key: str
    task: Task
    cell: Cell
    determined_by: dict[str, Any]
    averaged: bool
    missing: int


class Sweep:
    """A sweep over runs.

    Args:
      settings: the sweep's.
      output: folder of the results.
    """

    def __init__(self, settings: SweepSettings, output: Path):
        self._settings, self._output = settings, output
        param_sharding.check_batch(settings.batch, make_mesh(settings.mesh))
        self._layouts: dict[Path, tuple[Mesh, str]] = {}
        self._hashes = Hashes(output / "hashes.json")
        self._rows: list[Row] = []
        self._before = results.read(output / results.FILE)
        self._tasks: dict[str, Task | Exception] = {}
        for name, options in settings.tasks.items():
            try:
                self._tasks[name] = registry.make_task(name, options)
            except Exception as error:  # The other tasks still run.
                self._tasks[name] = error
        self._bar = tqdm(total=0, unit="item", file=sys.stderr, dynamic_ncols=True, smoothing=0.05)

    def run(self, workdirs: Sequence[Path]) -> list[Row]:
        """Runs everything that has no results yet; returns one row per cell of this sweep, including failed ones.

        Raises:
          ValueError: two runs have the same name, or another sweep uses this folder.
          FileNotFoundError: a run does not exist.
        """
        names = [workdir.name for workdir in workdirs]
        if len(set(names)) < len(names):
            raise ValueError(
                f"the runs are called {', '.join(names)}; results are named by workdir, so rename one"
            )
        with locked(self._output):
            for workdir in workdirs:
                for checkpoint in self._checkpoints(workdir):
                    if self._run_checkpoint(checkpoint):
                        self._write()
            self._write()
        self._bar.close()
        return self._rows

    def _checkpoints(self, workdir: Path) -> Iterator[Checkpoint]:
        if self._settings.follow:
            return run_checkpoints.followed(
                workdir, until=self._settings.until, patience=60 * self._settings.patience
            )
        checkpoints = run_checkpoints.chosen(workdir, tuple(self._settings.checkpoints))
        if not checkpoints:
            raise FileNotFoundError(
                f"{workdir} has no checkpoints yet; config.follow waits for them"
            )
        return iter(checkpoints)

    def _run_checkpoint(self, checkpoint: Checkpoint) -> bool:
        """Runs all cells of a checkpoint, which is loaded at most once for averaged and once for other parameters.

        Returns whether it was loaded.
        """
        combinations = sorted(
            registry.choices(self._settings.settings),
            key=lambda choice: not choice.get("ema", True),
        )
        planned = [
            self._plan(checkpoint, name, chosen)
            for chosen, name in itertools.product(combinations, self._tasks)
        ]
        missing = {cell.key: cell.missing for cell in planned if isinstance(cell, _Planned)}
        self._bar.total += sum(missing.values())
        loaded: tuple[bool, Tuna] | None = None
        was_loaded = False
        for one in planned:
            if not isinstance(one, _Planned):
                self._rows.append(one)
                continue
            try:
                if cell_store.missing(one.task, one.cell):
                    if loaded is None or loaded[0] != one.averaged:
                        loaded = None  # Never two models in memory.
                        mesh, dtype = self._layout(checkpoint)
                        model = loading.load(
                            checkpoint.path,
                            mesh=mesh,
                            dtype=dtype,
                            averaged=one.averaged,
                            vae=self._settings.vae or None,
                            tokenizer=self._settings.tokenizer or None,
                        )
                        loaded, was_loaded = (one.averaged, model), True
                        del model
                    self._run(one, loaded[1])
                entries = results.outcome(one.cell.records(), one.task.chance)
                entries |= {"key": one.key, "verdict": one.task.verdict}
                self._rows.append(one.row | entries | one.cell.files_entry())
            except Exception as error:  # The other cells still run.
                logging.debug("traceback of a failed cell:", exc_info=True)
                self._rows.append(one.row | {"error": _reason(error, checkpoint)})
        return was_loaded

    def _plan(self, checkpoint: Checkpoint, name: str, chosen: Mapping[str, Any]) -> _Planned | Row:
        """A cell with its number of missing items; or a row with the reason why it cannot run."""
        row: Row = {"run": checkpoint.run, "step": checkpoint.step, "task": name}
        row["settings"] = dict(chosen)
        averaged = bool(chosen.get("ema", True))
        task = self._tasks[name]
        if isinstance(task, Exception):
            return row | {"error": _reason(task)}
        try:
            determined_by = cell_store.determining(
                task, self._identity(checkpoint, averaged), chosen, self._settings.seed
            )
            applied = {key: chosen[key] for key in chosen if key in (*task.uses, "ema")}
            key = cell_store.key_of(determined_by)
            cell = Cell(self._output / "cells" / key)
            missing = len(cell_store.missing(task, cell))
        except Exception as error:
            return row | {"error": _reason(error, checkpoint)}
        row["applied"] = applied
        return _Planned(row, key, task, cell, determined_by, averaged, missing)

    def _identity(self, checkpoint: Checkpoint, averaged: bool) -> dict[str, Any]:
        """What identifies the model's parameters."""
        parameters = self._hashes.of_checkpoint(checkpoint.path)
        vae = self._settings.vae or self._hashes.once(
            f"the VAE of {parameters}", lambda: str(loading.vae_file(checkpoint.path) or "")
        )
        identity = {"parameters": parameters, "averaged": averaged}
        where = f"{jax.device_count()} devices, {self._settings.mesh}, {self._settings.dtype!r}"
        dtype = self._hashes.once(
            f"the dtype of {parameters} on {where}", lambda: self._layout(checkpoint)[1]
        )
        if dtype:
            identity["dtype"] = dtype
        if vae:
            identity["vae"] = self._hashes(Path(vae))
        tokenizer = self._settings.tokenizer
        if tokenizer:
            exists = Path(tokenizer).exists()
            identity["tokenizer"] = self._hashes(Path(tokenizer)) if exists else tokenizer
        return identity

    def _layout(self, checkpoint: Checkpoint) -> tuple[Mesh, str]:
        """The mesh and the dtype of a checkpoint's model; checkpoints of one run have the same."""
        run = checkpoint.path.parent
        if run not in self._layouts:
            settings = self._settings
            if settings.mesh == MeshSettings():
                self._layouts[run] = loading.chosen_layout(checkpoint.path, settings.dtype)
            else:
                self._layouts[run] = make_mesh(settings.mesh), settings.dtype
        return self._layouts[run]

    def _run(self, one: _Planned, model: Tuna) -> None:
        self._bar.set_description(f"{one.row['run']} {one.row['step']} {one.row['task']}")
        cell_store.run_missing(
            one.task,
            one.cell,
            registry.configured(model, one.row["settings"]),
            one.determined_by,
            seed=self._settings.seed,
            batch=self._settings.batch,
            parts=model.batch_parts,
            saved_items=self._settings.saved_items,
            done=self._bar.update,
        )

    def _write(self) -> None:
        rows = results.merged(self._before, self._rows)
        results.write(self._output / results.FILE, rows)
        tasks = [task for task in self._tasks.values() if isinstance(task, Task)]
        path = self._output / "report.html"
        report_page.write(
            path,
            f"Sweep: {self._settings.name}",
            rows,
            self._output / "cells",
            registry.attribution(tasks),
        )


def command(values: Mapping[str, Any], workdirs: Sequence[Path], output: Path | None) -> int:
    """Runs a sweep, prints its results and the path of its report, and returns how many cells failed, or had items
    that did.

    Args:
      values: the sweep's settings.
      workdirs: of the runs.
      output: folder of the results; None for `sweeps/NAME` in the first workdir.

    Raises:
      ValueError: an unknown key, or a batch that does not divide over the mesh.
      FileNotFoundError: a run does not exist.
    """
    settings = parse(SweepSettings, values)
    output = output or workdirs[0] / "sweeps" / settings.name
    rows = Sweep(settings, output).run(workdirs)
    print(results.table(rows))
    print(output / "report.html")
    return results.failures(rows)


def _reason(error: Exception, checkpoint: Checkpoint | None = None) -> str:
    """Why a cell failed, as one line."""
    if checkpoint is not None and not checkpoint.path.exists():
        return f"the checkpoint {checkpoint.path} does not exist (any more)"
    text = " ".join(str(error).split())[:400]
    plain = isinstance(error, (ValueError, FileNotFoundError))
    return text if plain and text else f"{type(error).__name__}: {text}"
