"""Stored scores of checkpoints, their table and their plot."""

import io

import numpy as np
from PIL import Image

from tuna_jax.emoji.evaluation import learning_curves
from tuna_jax.evaluation.metrics.accuracy import Score


def score(right, count=40):
    return Score.of([True] * right + [False] * (count - right), 0.25)


def test_stored_scores_are_read_without_an_incomplete_line(tmp_path):
    assert learning_curves.read(tmp_path) == {}
    learning_curves.append(tmp_path, 2000, {"edit_accuracy": score(30)})
    learning_curves.append(
        tmp_path, 1000, {"edit_accuracy": score(10), "place_accuracy": score(40)}
    )
    with (tmp_path / learning_curves.FILE).open("a") as file:
        file.write('{"step": 3000, "sco')
    curve = learning_curves.read(tmp_path)
    assert list(curve) == [1000, 2000]
    assert curve[1000]["edit_accuracy"]["value"] == 0.25
    assert curve[2000]["edit_accuracy"]["count"] == 40


def runs(tmp_path):
    for name, scores in {
        "joint": {"edit_accuracy": 20, "place_accuracy": 40},
        "single": {"edit_accuracy": 30},
    }.items():
        (tmp_path / name).mkdir()
        for step in (500, 1000):
            entry = {key: score(right * step // 1000) for key, right in scores.items()}
            learning_curves.append(tmp_path / name, step, entry)
    return {name: learning_curves.read(tmp_path / name) for name in ("joint", "single")}


def test_the_table_has_a_column_per_run(tmp_path):
    lines = learning_curves.table(runs(tmp_path)).splitlines()
    assert lines[0] == "| score (chance) | joint, step 1000 | single, step 1000 |"
    assert (
        f"| {learning_curves.MEANING['place_accuracy'][0]} (25.0 %) | 100.0 % (91 to 100) |  |"
        in lines
    )
    assert "| Edits (25.0 %) | 50.0 % (35 to 65) | 75.0 % (60 to 86) |" in lines
    assert len(lines) == 4


def test_the_table_compares_runs_at_the_same_step(tmp_path):
    both = runs(tmp_path)
    both["single"][1500] = {"edit_accuracy": both["single"][1000]["edit_accuracy"] | {"value": 1.0}}
    assert (
        learning_curves.table(both)
        .splitlines()[0]
        .endswith("joint, step 1000 | single, step 1000 |")
    )
    del both["joint"][500], both["joint"][1000]
    both["joint"][2000] = both["single"][500]
    assert (
        learning_curves.table(both)
        .splitlines()[0]
        .endswith("joint, step 2000 | single, step 1500 |")
    )


def test_the_plot_has_both_runs(tmp_path):
    both = runs(tmp_path)
    plotted = np.asarray(Image.open(io.BytesIO(learning_curves.plot(both))).convert("RGB")).astype(
        int
    )
    single = Image.open(io.BytesIO(learning_curves.plot({"joint": both["joint"]}))).convert("RGB")
    second = np.array([0xD0, 0x64, 0x2F])  # its colour
    assert (np.abs(plotted - second).max(-1) < 8).sum() > 50
    assert (np.abs(np.asarray(single).astype(int) - second).max(-1) < 8).sum() == 0
