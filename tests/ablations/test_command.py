"""A study is trained, killed, resumed and reported, with a trainer that only writes results."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ablations import studies
from tuna_jax.ablations import command, runs, study
from tuna_jax.sweeps import results

ROOT = Path(__file__).parents[2]


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the trainer, which takes the place of `tuna-jax train`."""
    monkeypatch.setattr(runs.train_all, "__defaults__", (1, 0, studies.trainer(tmp_path)))
    return tmp_path


def _ablate(folder: Path, **options: object) -> dict[str, str]:
    parsed = study.parse(studies.values())
    folder = folder / "study"
    return dict(command.ablate(parsed, folder, runs_folder=folder / "runs", **options))


def test_runs_that_fail_are_named_and_the_others_are_compared(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = _ablate(trained, jobs=2)
    assert (
        list(failed) == ["green, seed 1"]
        and "error: config.data.size is 128" in failed["green, seed 1"]
    )
    rows = results.read(trained / "study" / "results.jsonl")
    assert len(rows) == 2 * (3 + 3 + 2)
    printed = capsys.readouterr().out
    assert (
        "| name/exact | blue | 10.6 % (8.1 % to 13.1 %) | 3 | +3.2 % (+3.2 % to +3.2 %) |"
        in printed
    )
    assert (
        "| blue beats red: blue > red | name/exact | +3.2 % (+3.2 % to +3.2 %) | holds |" in printed
    )
    page = (trained / "study" / "report.html").read_text()
    assert "green, seed 1" in page and "61.4 against 61.7" in page and "holds" in page
    assert (trained / "study" / "curves_name.png").is_file()

    (trained / "study" / "runs" / "mended").write_text("")
    assert _ablate(trained) == {}
    starts = (trained / "study" / "runs" / "starts").read_text().split()
    assert len(starts) == 9 + 1  # Only the run that had failed was started again.
    stored = json.loads((trained / "study" / "study.json").read_text())
    assert stored["hash"] in page


def test_equal_runs_of_two_studies_are_trained_once(trained: Path) -> None:
    parsed = study.parse(studies.values(seeds=(0,)))
    other = study.parse(
        studies.values(
            seeds=(0,),
            name="Other",
            arms={"same": {"data": {"size": 96}}},
            reference="same",
            claims={},
        )
    )
    for number, each in enumerate((parsed, other)):
        workdir = trained / str(number)
        assert not command.ablate(each, workdir, runs_folder=trained / "runs", arms=())
    assert len((trained / "runs" / "starts").read_text().split()) == 3
    page = (trained / "0" / "report.html").read_text()
    assert "one seed" in page and "inf" not in page.partition("</style>")[2]
    (row,) = (r for r in results.read(trained / "1" / "results.jsonl") if r["step"] == 4)
    assert row["arm"] == "same" and row["value"] == pytest.approx(0.096)


def test_a_changed_study_is_refused_and_the_change_named(trained: Path) -> None:
    _ablate(trained, arms=("red",))
    rows = results.read(trained / "study" / "results.jsonl")
    assert {row["arm"] for row in rows} == {"red"}
    changed = studies.values()
    changed["experiment"]["data"]["size"] = 32
    with pytest.raises(ValueError, match=r"study\.experiment\.data\.size"):
        command.ablate(
            study.parse(changed), trained / "study", runs_folder=trained / "study" / "runs"
        )
    assert results.read(trained / "study" / "results.jsonl") == rows


def test_the_report_alone_trains_nothing(trained: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"results\.jsonl"):
        _ablate(trained, train=False)
    _ablate(trained, arms=("red", "blue"))
    page = trained / "study" / "report.html"
    page.unlink()
    assert _ablate(trained, train=False) == {} and page.is_file()
    with pytest.raises(ValueError, match="yellow"):
        _ablate(trained, arms=("yellow",))


def test_a_stopped_study_lets_its_runs_save(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / "wait").write_text("")
    program = (
        "from pathlib import Path; import studies; from tuna_jax.ablations import runs, study\n"
        f"todo = runs.runs_of(study.parse(studies.values()), Path({str(folder)!r}))\n"
        f"runs.train_all(todo, 2, 0, studies.trainer(Path({str(tmp_path)!r})))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.log"))) < 2 or not (folder / "waiting").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "KeyboardInterrupt" in errors
    assert len(list(folder.glob("*.saved"))) == 2


def test_devices_are_divided_between_jobs(tmp_path: Path) -> None:
    todo = runs.runs_of(study.parse(studies.values()), tmp_path)
    with pytest.raises(ValueError, match="--devices=3"):
        runs.train_all(todo, jobs=2, devices=3)


def test_an_experiment_file_is_the_run(tmp_path: Path) -> None:
    from tuna_jax.cli import config_flags

    run = runs.runs_of(study.parse(studies.values()), tmp_path)[4]
    runs.write_experiment(run)
    assert config_flags.read(str(run.experiment)) == run.values
    assert (run.arm, run.seed) == ("blue", 1)


def test_a_run_is_finished_when_its_last_step_is_evaluated(tmp_path: Path) -> None:
    run = runs.runs_of(study.parse(studies.values()), tmp_path)[0]
    (run.folder / "evaluation").mkdir(parents=True)
    (run.folder / "model.safetensors").write_text("")
    path = run.folder / "evaluation" / "results.jsonl"
    for steps, finished in (((2,), False), ((2, 4), True)):
        path.write_text("".join(json.dumps({"step": step}) + "\n" for step in steps))
        assert run.is_finished == finished
    (run.folder / "model.safetensors").unlink()
    assert not run.is_finished
