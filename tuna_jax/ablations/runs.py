"""The runs of a study: one training per arm and seed, each in a process of its own, several side by side.

    RUNS/HASH.py    the run's experiment, for `tuna-jax train`
    RUNS/HASH/      its workdir
    RUNS/HASH.log   what it printed

HASH is a hash of the experiment, so studies that share a folder of runs share the runs that are equal. A killed study
continues: finished runs are kept, and an unfinished one resumes from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pprint
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from tuna_jax.ablations.study import Study
from tuna_jax.sweeps import results
from tuna_jax.sweeps.online import FOLDER
from tuna_jax.training.weights_file import exported
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.fingerprint import fingerprint

_POLL = 0.5  # seconds
_LOG_TAIL = 400  # characters of a failed run's last line


@dataclasses.dataclass(frozen=True)
class Run:
    """One training of a study.

    Attributes:
        arm, seed: which one.
        values: its experiment.
        folder: its workdir.
    """

    arm: str
    seed: int
    values: Mapping[str, Any]
    folder: Path

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.arm}, seed {self.seed}"

    @property
    def steps(self) -> int:
        """Its last step."""
        return int(self.values["steps"])

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def experiment(self) -> Path:
        """Its experiment file."""
        return self.folder.with_name(f"{self.folder.name}.py")

    def rows(self) -> list[results.Row]:
        """Its results at every evaluated step."""
        return results.read(self.folder / FOLDER / results.FILE)

    @property
    def is_finished(self) -> bool:
        """Whether it has exported its model and evaluated its last step."""
        return exported(self.folder) is not None and any(
            row["step"] == self.steps for row in self.rows()
        )


def runs_of(study: Study, folder: Path) -> list[Run]:
    """The runs of a study, seed by seed, so that all arms have as many runs at any time.

    Args:
        study: the study.
        folder: of the runs.
    """
    runs = []
    for seed in study.seeds:
        for arm in study.arms:
            values = study.run_values(arm, seed)
            key = fingerprint(json.loads(json.dumps(values)))[:12]
            runs.append(Run(arm, seed, values, folder / key))
    return runs


def write_experiment(run: Run) -> None:
    """Writes the run's experiment file, which trains it again wherever it is copied."""
    values = pprint.pformat(dict(run.values), sort_dicts=False, width=100)
    text = (
        f'"""{run.name.capitalize()}; written by `tuna-jax ablate`."""\n\n'
        "from ml_collections import ConfigDict\n\n\n"
        f"def get_config() -> ConfigDict:\n    return ConfigDict(\n"
        f"{textwrap.indent(values, ' ' * 8)}\n    )\n"
    )
    with atomic_file(run.experiment) as scratch:
        scratch.write_text(text, encoding="utf-8")


@dataclasses.dataclass
class _Worker:
    """A process that trains, with its part of the machine."""

    run: Run
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    part: int


TRAIN = (sys.executable, "-m", "tuna_jax.train")
"""The command that trains a run, without its flags."""


def train_all(
    runs: Sequence[Run], jobs: int = 1, devices: int = 0, command: Sequence[str] = TRAIN
) -> dict[str, str]:
    """Trains the runs that are not finished.

    Args:
        runs: of a study; equal runs are trained once.
        jobs: how many train at a time. On CPUs each job has its share of the cores.
        devices: number of accelerators of this host, which are divided between the jobs; 0: every job sees all of
            them.
        command: trains a run; it gets `--config` and `--workdir`.

    Returns:
        By the name of each run that failed: the last line that it printed.

    Raises:
        ValueError: the devices cannot be divided between the jobs.
        KeyboardInterrupt: the study was stopped; the runs in progress have saved checkpoints.
    """
    if devices and devices % jobs:
        raise ValueError(f"--devices={devices} cannot be divided between --jobs={jobs}")
    waiting = list({run.folder: run for run in runs if not run.is_finished}.values())
    failed: dict[str, str] = {}
    workers: list[_Worker] = []
    bar = tqdm(total=len(waiting), desc="training", unit="run")
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while waiting or workers:
            free = [part for part in range(jobs) if part not in {w.part for w in workers}]
            while waiting and free:
                workers.append(_start(waiting.pop(0), free.pop(0), jobs, devices, command))
                tqdm.write(f"{workers[-1].run.name}: training in {workers[-1].run.folder}")
            time.sleep(_POLL)
            for worker in [w for w in workers if w.process.poll() is not None]:
                workers.remove(worker)
                worker.log.close()
                bar.update()
                if not worker.run.is_finished:
                    failed[worker.run.name] = _reason(worker.run, worker.process.returncode)
                    tqdm.write(f"{worker.run.name}: FAILED: {failed[worker.run.name]}")
    finally:
        for worker in workers:  # Training saves a checkpoint and exits.
            worker.process.terminate()
        for worker in workers:
            worker.process.wait()
            worker.log.close()
        signal.signal(signal.SIGTERM, previous)
        bar.close()
    return failed


def _interrupt(number: int, frame: Any) -> None:
    del number, frame
    raise KeyboardInterrupt


def _start(run: Run, part: int, jobs: int, devices: int, command: Sequence[str]) -> _Worker:
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    write_experiment(run)
    log = run.log.open("ab")
    process = subprocess.Popen(
        [*command, f"--config={run.experiment}", f"--workdir={run.folder}"],
        env={**os.environ, **_visible_devices(part, jobs, devices)},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches it only through `train_all`.
    )
    if jobs > 1 and not devices and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        mine = cores[part::jobs] or cores
        os.sched_setaffinity(process.pid, mine)
    return _Worker(run, process, log, part)


def _visible_devices(part: int, jobs: int, devices: int) -> dict[str, str]:
    """Environment variables that show a job its part of the host's accelerators."""
    if not devices:
        return {}
    share = devices // jobs
    numbers = ",".join(str(part * share + i) for i in range(share))
    return {
        "CUDA_VISIBLE_DEVICES": numbers,
        "TPU_VISIBLE_CHIPS": numbers,
        "TPU_CHIPS_PER_PROCESS_BOUNDS": f"{share},1,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }


def _reason(run: Run, status: int) -> str:
    """Why a run failed: the last line that it printed, or its exit status."""
    text = run.log.read_bytes().decode(errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    last = lines[-1][:_LOG_TAIL] if lines else "it printed nothing"
    return f"exit status {status}: {last} (all of it: {run.log})"
