"""A multitask run is evaluated on held-out examples, with samples and the tasks that it names."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from tuna_jax import evaluate, flow
from tuna_jax.inference import loading
from tuna_jax.models import tuna
from tuna_jax.trainers import evaluate_run
from tuna_jax.trainers.stream_config import MultitaskData
from tuna_jax.training.train_program import encode

FIXTURES = Path(__file__).parents[1] / "fixtures" / "version_0_1"

pytestmark = pytest.mark.filterwarnings("ignore:.*is not in the compact vocabulary")


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A finished multitask run, in a folder where its manifest and a held-out one are found."""
    shutil.copytree(FIXTURES / "files", tmp_path / "files")
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(FIXTURES / "multitask_run_finished.safetensors", run / "model.safetensors")
    lines = (tmp_path / "files/captions.jsonl").read_text().split("\n")
    (tmp_path / "files/held_out.jsonl").write_text("\n".join(lines[:2]) + "\n")
    monkeypatch.chdir(tmp_path)
    return run


def test_held_out_streams_take_the_rest_from_the_training_stream():
    data = MultitaskData(
        streams={
            "draw": {"task": "t2i", "manifest": "train.jsonl", "rows": 4},
            "ask": {"task": "understand", "latents": "train_latents"},
        },
        held_out={"draw": {"manifest": "test.jsonl"}, "ask": {"tfds": "my_vqa", "rows": 2}},
    )
    chosen, held_out = evaluate_run.evaluation_data(data)
    assert held_out
    assert chosen.streams == {
        "draw": {"task": "t2i", "manifest": "test.jsonl", "rows": 4},
        "ask": {"task": "understand", "tfds": "my_vqa", "rows": 2},
    }
    assert evaluate_run.evaluation_data(dataclasses.replace(data, held_out={}))[1] is False


def test_losses_are_those_of_the_model(workdir):
    """The flow loss of a batch equals the joint loss of the same batch, times and noise."""
    model, settings = loading.load(workdir), evaluate_run.read_settings(workdir)
    losses, held_out = evaluate_run.measure_losses(model, settings, batches=2)
    assert not held_out and set(losses) == {"draw", "ask"}
    assert set(losses["draw"]) == {"examples", "flow_loss"}
    assert set(losses["ask"]) == {"examples", "text_loss"}
    assert losses["draw"]["examples"] == 4

    only = dataclasses.replace(settings.data, streams={"draw": settings.data.streams["draw"]})
    mixture = evaluate_run.open_mixture(only, model.config, model.tokenizer)
    expected = []
    for number in range(2):
        batch = jax.tree.map(jax.numpy.asarray, mixture[number])
        time_key, noise_key, vae_key = jax.random.split(
            jax.random.fold_in(jax.random.key(0), number), 3
        )
        latents = encode(
            model.config.vae,
            np.float32,
            model.vae_params,
            batch["pixels"],
            vae_key,
        )
        t = flow.sample_time(time_key, batch["is_target"].shape, mu=flow.shift_mu())
        noise = jax.random.normal(noise_key, latents.shape)
        metrics = tuna.loss(model.config, model.params, {**batch, "latents": latents}, noise, t)[1]
        expected.append(float(metrics["flow_loss"]))
    assert losses["draw"]["flow_loss"][0] == pytest.approx(np.mean(expected), rel=1e-5)


def test_the_command_writes_a_report(workdir, capsys):
    assert evaluate.main([f"--workdir={workdir}", "--batches=1", "--steps=1"]) == 0
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["held_out"] is False and summary["sampling"]["steps"] == 1
    assert {"draw", "ask"} == set(summary["losses"])
    page = (workdir / "report.html").read_text()
    assert "config.data.held_out" in page and "data:image/png" in page
    assert (workdir / "sheets/samples.png").is_file()
    assert "TRAINING" in capsys.readouterr().out


def test_a_missing_manifest_names_its_key(workdir, capsys):
    shutil.rmtree(workdir.parent / "files")
    assert evaluate.main([f"--workdir={workdir}", "--batches=1"]) == 1
    assert "config.data.streams.draw.manifest" in capsys.readouterr().err


def test_learning_curves_are_for_the_emoji_demo(workdir, capsys):
    assert evaluate.main([f"--workdir={workdir}", "--learning_curve"]) == 1
    assert "--sweep" in capsys.readouterr().err
