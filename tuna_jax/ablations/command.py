"""What `tuna-jax ablate` does: train what is missing, collect the results, and report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuna_jax.ablations import comparison, report
from tuna_jax.ablations.comparison import Row
from tuna_jax.ablations.runs import Run, runs_of, train_all
from tuna_jax.ablations.study import Study, differences
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.config_parsing import unknown_key
from tuna_jax.utils.text_files import read_json, read_log

STUDY_FILE = "study.json"
RESULTS_FILE = "results.jsonl"


def ablate(
    study: Study,
    workdir: Path,
    *,
    runs_folder: Path,
    arms: Sequence[str] = (),
    jobs: int = 1,
    devices: int = 0,
    train: bool = True,
) -> Mapping[str, str]:
    """Trains the runs that are missing, and writes results.jsonl, report.html and the curves.

    Args:
        study: the study.
        workdir: folder of its results.
        runs_folder: folder of the runs.
        arms: those to train now; empty: all.
        jobs, devices: see `runs.train_all`.
        train: whether to train; otherwise only the report is written, from results.jsonl.

    Returns:
        By the name of each run that failed, why.

    Raises:
        ValueError: an unknown arm, or the study has changed since its first run.
    """
    for arm in arms:
        if arm not in study.arms:
            raise ValueError(unknown_key(f"study.arms.{arm} (--arms)", arm, study.arms))
    check_unchanged(study, workdir)
    failed: Mapping[str, str] = {}
    if train:
        write_json(workdir / STUDY_FILE, {"hash": study.hash, "study": study.as_json()})
        runs = runs_of(study, runs_folder)
        chosen = [run for run in runs if not arms or run.arm in arms]
        try:
            failed = train_all(chosen, jobs, devices)
        finally:
            rows = collect(runs)
            with atomic_file(workdir / RESULTS_FILE) as scratch:
                scratch.write_text(comparison.lines(rows), encoding="utf-8")
    elif not (workdir / RESULTS_FILE).is_file():
        raise FileNotFoundError(
            f"there is no {workdir / RESULTS_FILE}; without --report the command trains the study"
        )
    else:
        rows = read_log(workdir / RESULTS_FILE)
    report.write(workdir / "report.html", study, rows, failed)
    print(report.table(study, rows))
    for run, reason in failed.items():
        print(f"{run}: FAILED: {reason}")
    print(f"{workdir / 'report.html'}: study {study.hash}")
    return failed


def check_unchanged(study: Study, workdir: Path) -> None:
    """Raises ValueError if the workdir holds results of a study with other content."""
    path = workdir / STUDY_FILE
    if not path.is_file():
        return
    stored = read_json(path)
    if stored.get("hash") != study.hash:
        changed = differences(stored.get("study", {}), study.as_json())
        raise ValueError(
            f"the study has changed since its first run in {workdir} (hash {stored.get('hash')}, now {study.hash}): "
            f"{', '.join(changed[:8])}; choose another --workdir, or change it back"
        )


def collect(runs: Sequence[Run]) -> list[Row]:
    """The results of all runs that have finished."""
    return [
        row
        for run in runs
        if run.is_finished
        for row in comparison.rows_of(run.arm, run.seed, run.folder.name, run.rows())
    ]


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Writes JSON, whole or not at all."""
    with atomic_file(path) as scratch:
        scratch.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
