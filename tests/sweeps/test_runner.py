"""Sweeps from end to end on a tiny run: what they measure and store, how they fail, and that they are repeatable."""

import json
import shutil

import numpy as np
import pytest

from tuna_jax.inference import loading
from tuna_jax.sweeps import results, runner
from tuna_jax.utils.config_parsing import parse

TASKS = {
    "generate_single": {"count": 5},
    "name": {"kind": "answer", "question": "name", "count": 6},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_run):
    folder = tmp_path_factory.mktemp("run")
    tiny_run.save(folder / "run", tiny_run.experiment(folder), (10, 20))
    return folder / "run"


def settings(**changes):
    values = {"name": "try", "tasks": TASKS, "batch": 8, "saved_items": 2, "mesh": {"data": 1}}
    values |= {"settings": {"guidance": (1.0, 2.0)}, **changes}
    return parse(runner.SweepSettings, values)


def scores_or_errors(rows):
    return {results.identity(row): row.get("scores") or row["error"] for row in rows}


@pytest.fixture(scope="module")
def measured(run, tmp_path_factory):
    output = tmp_path_factory.mktemp("output")
    return output, runner.Sweep(settings(), output).run([run])


def test_every_cell_has_its_row(measured):
    output, rows = measured
    assert len(rows) == 2 * 2 * 2 and not any("error" in row for row in rows)
    assert results.read(output / results.FILE) == results.merged([], rows)
    assert {row["scores"]["exact"]["count"] for row in rows if row["task"] == "name"} == {6}
    # Answers do not depend on guidance: one cell for both.
    assert len(list((output / "cells").iterdir())) == 2 * (2 + 1)
    cell = json.loads((output / "cells" / rows[0]["key"] / "cell.json").read_text())
    assert cell["settings"] == {"guidance": 1.0} and cell["model"]["averaged"] is True
    assert "Sweep: try" in (output / "report.html").read_text()


def test_a_repeated_sweep_reads_no_checkpoint(measured, run, monkeypatch):
    output, rows = measured
    monkeypatch.setattr(loading, "load", lambda *args, **more: 1 / 0)
    assert runner.Sweep(settings(), output).run([run]) == rows
    followed = runner.Sweep(settings(follow=True, until=20), output).run([run])
    assert followed == rows, "there is no wait for a run that has ended"
    other = runner.Sweep(settings(seed=8), output).run([run])
    assert all("ZeroDivisionError" in row["error"] for row in other), (
        "another seed is measured again"
    )
    runner.Sweep(settings(), output).run([run])


def test_the_batch_changes_nothing(measured, run, tmp_path):
    output, rows = measured
    again = scores_or_errors(runner.Sweep(settings(batch=2), tmp_path).run([run]))
    for row in rows:
        assert again[results.identity(row)] == row["scores"]
        a, b = (runner.Cell(at / "cells" / row["key"]).pictures() for at in (output, tmp_path))
        for item in a:
            assert np.abs(a[item].astype(int) - b[item]).max() <= 1, "they differ only by rounding"
    lines = [line for path in tmp_path.glob("cells/*/items.jsonl") for line in path.open()]
    assert len(lines) == 2 * (2 * 5 + 6)


def test_parameters_averaged_or_not_and_other_settings_are_other_models(run, tmp_path):
    choices = {"ema": (False, True), "steps": (2, 3)}
    tasks = {"generate_single": {"count": 2}}
    rows = runner.Sweep(settings(tasks=tasks, settings=choices, checkpoints=(20,)), tmp_path).run(
        [run]
    )
    assert len({row["key"] for row in rows}) == 4
    pictures = {
        row["key"]: runner.Cell(tmp_path / "cells" / row["key"]).pictures()[0] for row in rows
    }
    assert len({picture.tobytes() for picture in pictures.values()}) == 4


def test_failing_cells_have_a_reason_and_the_others_finish(run, tmp_path, capsys, monkeypatch):
    workdir = shutil.copytree(run, tmp_path / "run")
    wrong = tmp_path / "evaluation_metadata.jsonl"
    wrong.write_text('{"tag": "colors", "include": [], "prompt": "a dog"}\n{"tag": "colors"}\n')
    benchmark = {"kind": "benchmark", "benchmark": "geneval"}
    tasks = {
        **TASKS,
        "wrong_prompts": {**benchmark, "prompts": str(wrong)},
        "no_prompts": {**benchmark, "prompts": str(tmp_path / "nowhere")},
        "no_questions": {"kind": "questions", "file": str(tmp_path / "none.jsonl")},
        "prompts": {"kind": "answer", "question": "colour"},
        "empty": {"kind": "generate_pairs", "count": 0},
        "unknown": {},
        "misspelt": {"kind": "generate_pairs", "counts": 3},
    }
    load = loading.load

    def vanishing(path, *args, **more):
        if path.name == "00000010":
            shutil.rmtree(path)
        return load(path, *args, **more)

    monkeypatch.setattr(loading, "load", vanishing)
    values = {"name": "try", "tasks": tasks, "batch": 8, "mesh": {"data": 1}}
    values["checkpoints"] = (10, 15, 20)
    assert runner.command(values, [workdir], tmp_path / "out") > 0
    rows = results.read(tmp_path / "out" / results.FILE)
    reasons = {(row["step"], row["task"]): row.get("error") for row in rows}
    for step in (10, 15):
        for task in TASKS:
            assert "does not exist (any more)" in reasons[step, task]
    assert reasons[20, "generate_single"] is None and reasons[20, "name"] is None
    assert f"{wrong}:2: 'prompt' must be a text" in reasons[20, "wrong_prompts"]
    assert f"{tmp_path / 'nowhere'} has no evaluation_metadata.jsonl" in reasons[20, "no_prompts"]
    assert f"no file of questions at {tmp_path / 'none.jsonl'}" == reasons[20, "no_questions"]
    assert "'colour'" in reasons[20, "prompts"]
    assert "has no items" in reasons[20, "empty"]
    assert "config.tasks.unknown: 'unknown'" in reasons[20, "unknown"]
    assert "counts" in reasons[20, "misspelt"]
    assert "FAILED: config.tasks.empty has no items" in capsys.readouterr().out
    assert "does not exist (any more)" in (tmp_path / "out" / "report.html").read_text()


def test_results_outlive_their_checkpoint(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "run")
    first = runner.Sweep(settings(), tmp_path / "out").run([workdir])
    shutil.rmtree(workdir / "checkpoints" / "00000010")
    runner.Sweep(settings(), tmp_path / "out").run([workdir])
    assert results.read(tmp_path / "out" / results.FILE) == results.merged([], first)
    requested = runner.Sweep(settings(checkpoints=(10,)), tmp_path / "out").run([workdir])
    assert scores_or_errors(requested) == {
        k: v for k, v in scores_or_errors(first).items() if k[1] == 10
    }


def test_two_runs_are_compared(measured, run, tmp_path):
    output = shutil.copytree(measured[0], tmp_path / "out")
    other = shutil.copytree(run, tmp_path / "other")
    rows = runner.Sweep(settings(), output).run([run, other])
    halves = [[row["key"] for row in rows if row["run"] == name] for name in ("run", "other")]
    assert halves[0] == halves[1], "the same content is the same model, in any folder"
    text = (output / "report.html").read_text()
    assert "other against run" in text and "0.0 % to 0.0 %" in text
    with pytest.raises(ValueError, match="run, run"):
        runner.Sweep(settings(), output).run([run, tmp_path / "elsewhere" / "run"])


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"tasks": {}}, "no tasks are named.*generate_single"),
        (
            {"settings": {"speed": (3,)}},
            "'speed'",
        ),
        ({"settings": {"guidance": 2.0}}, "give the values to try"),
        ({"taks": {}}, r"config\.taks"),
    ],
)
def test_invalid_settings_are_refused(changes, pattern):
    with pytest.raises(ValueError, match=pattern):
        settings(**changes)


def test_a_run_without_checkpoints_is_refused(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"config\.follow"):
        runner.Sweep(settings(), tmp_path / "out").run([tmp_path / "run"])
