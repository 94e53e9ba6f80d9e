"""Scores with their intervals, two runs compared item by item, and the file of results."""

import numpy as np
import pytest

from tuna_jax.evaluation.metrics import accuracy
from tuna_jax.evaluation.metrics.accuracy import wilson
from tuna_jax.sweeps import results


def records(**metrics):
    count = len(next(iter(metrics.values())))
    return {
        item: {"item": item, "prompt": "", "values": {name: v[item] for name, v in metrics.items()}}
        for item in range(count)
    }


def row(run="a", step=1, task="t", settings=None, **more):
    return {"run": run, "step": step, "task": task, "settings": settings or {}, **more}


def test_a_share_has_wilsons_interval_and_a_mean_the_bootstraps():
    values = np.random.default_rng(0).normal(20, 3, 400)
    scores = results.scores(records(right=[1.0, 1.0, 0.0, 1.0]), {"right": 0.25, "other": 0.1})
    low, high = wilson(3, 4)
    assert scores == {"right": {"value": 0.75, "count": 4, "ci95": [low, high], "chance": 0.25}}
    score = results.scores(records(db=values.tolist()), {})["db"]
    assert score["value"] == pytest.approx(values.mean()) and "chance" not in score
    half = 1.96 * values.std() / 20  # of a mean of 400 normal values
    np.testing.assert_allclose(score["ci95"], values.mean() + np.array([-half, half]), atol=0.06)


def test_items_that_a_metric_does_not_apply_to_do_not_count():
    scores = results.scores(records(kind=[None, 1.0, None, 0.0], none=[None] * 4), {})
    assert list(scores) == ["kind"]
    assert (scores["kind"]["value"], scores["kind"]["count"]) == (0.5, 2)


def test_bootstrap_covers_the_mean_as_often_as_stated():
    random = np.random.default_rng(1)
    inside = 0
    for _ in range(100):
        low, high = accuracy.bootstrap(random.exponential(size=60))
        inside += low <= 1 <= high
    assert 85 <= inside <= 99


def test_the_difference_is_paired():
    random = np.random.default_rng(2)
    hard = random.normal(0, 10, 50)  # Items differ much more than the runs do.
    first = dict(enumerate(hard))
    second = {item: value + 0.5 + 0.1 * random.normal() for item, value in first.items()}
    gap = results.difference(first, second | {99: 1000.0})
    assert gap["count"] == 50 and gap["value"] == pytest.approx(0.5, abs=0.05)
    low, high = gap["ci95"]
    assert 0.4 < low < gap["value"] < high < 0.6
    back = results.difference(second, first)
    np.testing.assert_allclose(back["ci95"], [-high, -low], atol=0.01)
    assert results.difference(first, {99: 1.0}) is None


def test_a_truncated_line_is_skipped_and_later_results_replace_earlier(tmp_path):
    path = tmp_path / results.FILE
    assert results.read(path) == []
    results.write(path, [row(step=2, scores={}), row(step=1000)])
    with path.open("a") as file:
        file.write('{"run": "a", "st')
    before = results.read(path)
    assert [entry["step"] for entry in before] == [2, 1000]
    now = [row(step=1000, error="gone"), row(step=30), row(step=2, settings={"guidance": 2.0})]
    merged = results.merged(before, now)
    assert [entry["step"] for entry in merged] == [2, 2, 30, 1000]
    assert merged[-1]["error"] == "gone" and merged[0]["scores"] == {}
    runs = results.merged([row("a"), row("b")], [row("z"), row("b")])
    assert [entry["run"] for entry in runs] == ["z", "b", "a"], "in the order of the request"


def test_the_table_lists_results_and_failures():
    score = {"exact": {"value": 0.5, "count": 8, "ci95": [0.2, 0.8]}}
    table = results.table(
        [row(scores=score, settings={"guidance": 2.0}), row(step=5, error="no file")]
    )
    first, second = table.splitlines()
    assert "guidance=2.0" in first and "exact" in first and "0.5000 [0.2000, 0.8000] n=8" in first
    assert second.endswith("FAILED: no file") and " 5 " in second


def test_labels_name_the_settings_of_a_row():
    entry = row(applied={"guidance": 2.0, "ema": False})
    assert results.label(entry) == "guidance 2.0, not averaged"
    assert results.label(entry, runs=2) == "a, guidance 2.0, not averaged"
