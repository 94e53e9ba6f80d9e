"""A run that evaluates itself, on its sharded parameters, with the results of a sweep over its checkpoints."""

import dataclasses

import jax
import numpy as np
import pytest

from tuna_jax.emoji import model_bundle, trainer
from tuna_jax.emoji.config import EmojiExperiment
from tuna_jax.parallel import param_sharding
from tuna_jax.parallel.mesh import MeshSettings, make_mesh
from tuna_jax.sweeps import online, registry, results, runner
from tuna_jax.sweeps.task import Outcome, Task
from tuna_jax.training import metrics
from tuna_jax.training.config import EvaluationSettings
from tuna_jax.utils.config_parsing import parse

TASKS = {
    "generate_single": {"count": 3},
    "name": {"kind": "answer", "question": "name", "count": 4},
}


@pytest.fixture(scope="module")
def values(tmp_path_factory, tiny_run):
    """Four steps, evaluated and saved after every second one."""
    values = tiny_run.experiment(tmp_path_factory.mktemp("vae"))
    values["data"] |= {"scenes": 64, "generation_rows": 2, "understanding_rows": 2}
    values["optimizer"] |= {"warmup": 1}
    values |= {"steps": 4, "log_every": 1, "sample_every": 0, "checkpoint_every": 2, "keep": 9}
    evaluate = {"every": 2, "tasks": TASKS, "settings": {"guidance": (1.0, 2.0)}, "batch": 4}
    return values | {"evaluate": evaluate, "mesh": {"data": 1}}


def test_a_run_has_the_results_of_a_sweep_over_its_checkpoints(values, tmp_path):
    workdir = tmp_path / "run"
    assert trainer.train(values, parse(EmojiExperiment, values), workdir)
    rows = results.read(workdir / online.FOLDER / results.FILE)
    assert sorted({row["step"] for row in rows}) == [2, 4] and len(rows) == 2 * 2 * 2
    swept = parse(
        runner.SweepSettings,
        {
            "name": "s",
            **{k: v for k, v in values["evaluate"].items() if k != "every"},
            "mesh": {"data": 1},
        },
    )
    expected = {
        results.identity(row): row for row in runner.Sweep(swept, tmp_path / "s").run([workdir])
    }
    for row in rows:
        assert row["scores"] == expected[results.identity(row)]["scores"]
        assert row["applied"] == expected[results.identity(row)]["applied"]
    lines = metrics.read(workdir / metrics.METRICS_FILE)
    assert [line["step"] for line in lines] == [1, 2, 2, 3, 4, 4]
    evaluations = [line for line in lines if any(name.startswith("evaluate/") for name in line)]
    assert [line["step"] for line in evaluations] == [2, 4]
    assert (
        "evaluate/name/exact" in evaluations[0]
        and "evaluate/generate_single/ground, guidance 2.0" in evaluations[0]
    )
    last = next(row for row in rows if row["step"] == 4 and row["task"] == "name")
    assert evaluations[1]["evaluate/name/exact"] == last["scores"]["exact"]["value"]
    assert "Evaluation in training" in (workdir / "evaluation" / "report.html").read_text()


@pytest.fixture
def watched(monkeypatch):
    """A task that records the models that it gets, and returns the mean of their embeddings."""
    seen = []

    def run(model, items, seed):
        seen.append(model)
        mean = float(np.mean(model.params["language"]["embedding"]))
        return Outcome({"mean": [mean] * len(items)}, ["?"] * len(items))

    monkeypatch.setitem(
        registry.TASKS, "watched", lambda count=2: Task("watched", 1, count, {}, (), run)
    )
    return seen


def evaluator(values, workdir, **changes):
    run = parse(EmojiExperiment, values)
    settings = EvaluationSettings(every=1, tasks={"watched": {}}, **changes)
    model = model_bundle.load_bundle(run).model
    return online.evaluator(dataclasses.replace(run, evaluate=settings), model, workdir)


def on_mesh(values, tiny_run, seed):
    params = tiny_run.parameters(values, seed)
    return jax.device_put(
        params, param_sharding.shardings(params, make_mesh(MeshSettings(), jax.devices()[:1]))
    )


def test_the_parameters_are_those_of_training_and_no_copy(values, tmp_path, tiny_run, watched):
    params = on_mesh(values, tiny_run, 0)
    shape = params["language"]["embedding"].shape
    evaluate = evaluator(values, tmp_path)
    before = sum(array.shape == shape for array in jax.live_arrays())
    evaluate(1, params)
    assert watched[0].params is params and watched[0].sharding.generation
    assert sum(array.shape == shape for array in jax.live_arrays()) == before


def test_results_of_steps_that_are_taken_again_are_measured_again(
    values, tmp_path, tiny_run, watched
):
    evaluate = evaluator(values, tmp_path)
    for step, seed in (
        (1, 1),
        (2, 2),
        (3, 3),
        (2, 9),
    ):  # A resumed run took another course from step 1.
        params = on_mesh(values, tiny_run, seed)
        evaluation = evaluate(step, params)
        mean = float(np.mean(params["language"]["embedding"]))
        assert evaluation == {"evaluate/watched/mean": pytest.approx(mean)}
    rows = results.read(tmp_path / online.FOLDER / results.FILE)
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[1]["scores"]["mean"]["value"] == pytest.approx(mean)


def test_invalid_settings_are_reported_before_training(values, tmp_path, monkeypatch):
    run = parse(EmojiExperiment, values)
    bundle = model_bundle.load_bundle(run)

    def make(**changes):
        settings = dataclasses.replace(EvaluationSettings(every=1, tasks=TASKS), **changes)
        whole = dataclasses.replace(run, evaluate=settings)
        return online.evaluator(whole, bundle.model, tmp_path)

    def refused(words, **changes):
        with pytest.raises(ValueError, match=words):
            make(**changes)

    refused("config.tasks.nothing: 'nothing'", tasks={"nothing": {}})
    refused("no tasks are named", tasks={})
    refused("a sweep can vary 'ema'", settings={"ema": (False,)})
    monkeypatch.setattr(param_sharding, "batch_parts", lambda *args: 2)
    refused("a batch of 3 does not divide by 2", batch=3)
    assert make(every=0) is None
