"""Sweeps: checkpoints times tasks times settings on a mesh, from an experiment file to a report.

Everything that is measured is kept under `OUTPUT/cells` by what determined it; `results.jsonl` and `report.html` are
made of that. So a sweep that was killed goes on where it was, and one that is repeated finds everything there.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
from tuna_jax.utils.config_parsing import parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """A sweep's file.

    Attributes:
      name: of the folder of its results, and the heading of its report.
      checkpoints: steps; none: every checkpoint that the run has.
      follow: go on with every checkpoint of a run that is still training, as it appears.
      until: with `follow`, the last step to wait for; 0: the run's own last one.
      patience: with `follow`, minutes without a new checkpoint after which the sweep ends.
      tasks: by the name that results get: the options of a task, among them `kind`, its name in the table; where the
        two are the same, `kind` can be left out.
      settings: by name (guidance, guidance_interval, steps, solver, shift, size, ema), the values to try, all
        combinations of them. What is not named is as the run has it, and averaged parameters are taken.
      batch: rows a call.
      seed: of the noise.
      shown: of how many items pictures are kept.
      vae, tokenizer: as `Tuna.load` takes them, for models that are converted and lack one, or to try another; empty:
        the run's own.
      mesh: sizes of the mesh axes.
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
    shown: int = 8
    vae: str = ""
    tokenizer: str = ""
    mesh: MeshSettings = MeshSettings()

    def __post_init__(self) -> None:
        registry.check(self.tasks, self.settings)


@dataclasses.dataclass(frozen=True)
class _Planned:
    """A cell that is to be filled, and its row without scores."""

    row: Row
    key: str
    task: Task
    cell: Cell
    determined_by: dict[str, Any]
    averaged: bool
    missing: int


class Sweep:
    """A sweep over runs, whose results are kept in a folder.

    Args:
      settings: its file.
      output: the folder.
    """

    def __init__(self, settings: SweepSettings, output: Path):
        self._settings, self._output = settings, output
        self._mesh: Mesh = make_mesh(settings.mesh)
        param_sharding.check_batch(settings.batch, self._mesh)
        self._hashes = Hashes(output / "hashes.json")
        self._rows: list[Row] = []
        self._before = results.read(output / results.FILE)
        self._tasks: dict[str, Task | Exception] = {}
        for name, options in settings.tasks.items():
            try:
                self._tasks[name] = registry.make_task(name, options)
            except Exception as error:  # Whatever is wrong with one task, the others are measured.
                self._tasks[name] = error
        self._bar = tqdm(total=0, unit="item", file=sys.stderr, dynamic_ncols=True, smoothing=0.05)

    def run(self, workdirs: Sequence[Path]) -> list[Row]:
        """Measures everything; returns a row a cell of this sweep, failed ones among them.

        Raises:
          ValueError: two runs of one name, or another sweep in this folder.
          FileNotFoundError: a run that is not there.
        """
        names = [workdir.name for workdir in workdirs]
        if len(set(names)) < len(names):
            raise ValueError(
                f"the runs are called {', '.join(names)}; results go by the name of the workdir, so rename one"
            )
        with locked(self._output):
            for workdir in workdirs:
                for checkpoint in self._checkpoints(workdir):
                    if self._measure(checkpoint):
                        self._write()
            self._write()
        self._bar.close()
        return self._rows

    def _checkpoints(self, workdir: Path) -> Iterator[Checkpoint]:
        if self._settings.follow:
            return run_checkpoints.followed(
                workdir, until=self._settings.until, patience=60 * self._settings.patience
            )
        found = run_checkpoints.chosen(workdir, tuple(self._settings.checkpoints))
        if not found:
            raise FileNotFoundError(
                f"{workdir} has no checkpoints yet; config.follow waits for them"
            )
        return iter(found)

    def _measure(self, checkpoint: Checkpoint) -> bool:
        """All cells of a checkpoint; it is read once for averaged parameters and once for those that are not.

        Returns whether it was read.
        """
        combinations = sorted(
            registry.choices(self._settings.settings), key=lambda one: not one.get("ema", True)
        )
        planned = [
            self._plan(checkpoint, name, chosen)
            for chosen, name in itertools.product(combinations, self._tasks)
        ]
        left = {one.key: one.missing for one in planned if isinstance(one, _Planned)}
        self._bar.total += sum(left.values())
        loaded: tuple[bool, Tuna] | None = None
        was_read = False
        for one in planned:
            if not isinstance(one, _Planned):
                self._rows.append(one)
                continue
            try:
                if cell_store.missing(one.task, one.cell):
                    if loaded is None or loaded[0] != one.averaged:
                        loaded = None  # Never two of them in memory.
                        read = loading.load(
                            checkpoint.path,
                            mesh=self._mesh,
                            averaged=one.averaged,
                            vae=self._settings.vae or None,
                            tokenizer=self._settings.tokenizer or None,
                        )
                        loaded, was_read = (one.averaged, read), True
                        del read
                    self._fill(one, loaded[1])
                scores = results.scores(one.cell.records(), one.task.chance)
                told = {"key": one.key, "verdict": one.task.verdict, "scores": scores}
                self._rows.append(one.row | told | one.cell.told())
            except Exception as error:  # A cell that fails does so alone, and says why.
                logging.debug("where it was raised:", exc_info=True)
                self._rows.append(one.row | {"error": _reason(error, checkpoint)})
        return was_read

    def _plan(self, checkpoint: Checkpoint, name: str, chosen: Mapping[str, Any]) -> _Planned | Row:
        """A cell with what is missing of it; or a row that says why there is none."""
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
            left = len(cell_store.missing(task, cell))
        except Exception as error:
            return row | {"error": _reason(error, checkpoint)}
        row["applied"] = applied
        return _Planned(row, key, task, cell, determined_by, averaged, left)

    def _identity(self, checkpoint: Checkpoint, averaged: bool) -> dict[str, Any]:
        """What tells the model's numbers from all others."""
        parameters = self._hashes(checkpoint.path)
        vae = self._settings.vae or self._hashes.once(
            f"the VAE of {parameters}", lambda: str(loading.vae_file(checkpoint.path) or "")
        )
        identity = {"parameters": parameters, "averaged": averaged}
        if vae:
            identity["vae"] = self._hashes(Path(vae))
        words = self._settings.tokenizer
        if words:
            identity["tokenizer"] = self._hashes(Path(words)) if Path(words).exists() else words
        return identity

    def _fill(self, one: _Planned, model: Tuna) -> None:
        self._bar.set_description(f"{one.row['run']} {one.row['step']} {one.row['task']}")
        cell_store.fill(
            one.task,
            one.cell,
            registry.configured(model, one.row["settings"]),
            one.determined_by,
            seed=self._settings.seed,
            batch=self._settings.batch,
            parts=param_sharding.batch_parts(self._mesh),
            shown=self._settings.shown,
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
    """Runs a sweep, prints its results and where they are, and returns how many cells failed.

    Args:
      values: the sweep's file.
      workdirs: of the runs.
      output: folder of the results; None: `sweeps/NAME` in the first workdir.

    Raises:
      ValueError: an unknown key of the file, or a batch that does not divide over the mesh.
      FileNotFoundError: no such run.
    """
    settings = parse(SweepSettings, values)
    output = output or workdirs[0] / "sweeps" / settings.name
    rows = Sweep(settings, output).run(workdirs)
    print(results.table(rows))
    print(output / "report.html")
    return sum("error" in row for row in rows)


def _reason(error: Exception, checkpoint: Checkpoint | None = None) -> str:
    """Why a cell failed, in a line."""
    if checkpoint is not None and not checkpoint.path.exists():
        return f"the checkpoint {checkpoint.path} is not there (any more)"
    text = " ".join(str(error).split())[:400]
    plain = isinstance(error, (ValueError, FileNotFoundError))
    return text if plain and text else f"{type(error).__name__}: {text}"
