"""A killed and resumed run equals an uninterrupted one: every logged number and every parameter."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tuna_jax.config import preset
from tuna_jax.conversion import image_vae_file
from tuna_jax.models import vae
from tuna_jax.training import metrics, weights_file

ROOT = Path(__file__).parents[2]
STEPS = 60


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A VAE with random parameters, whose values do not matter here."""
    folder = tmp_path_factory.mktemp("resume")
    config = preset("tiny").vae
    params = vae.init(config, jax.random.key(0), image_only=True)
    statistics = (
        np.zeros(config.latent_channels, np.float32),
        np.ones(config.latent_channels, np.float32),
    )
    path = image_vae_file.export(folder / "vae.safetensors", config, params, statistics)
    return {**os.environ, "TINY_VAE": str(path), "PYTHONPATH": str(ROOT)}


def start(workdir, environment):
    command = [sys.executable, "-m", "tuna_jax.train"]
    command += ["--config=tests/training/tiny.py", f"--workdir={workdir}"]
    log = (workdir.parent / f"{workdir.name}.log").open("a")
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def finish(process, workdir):
    assert process.wait(timeout=300) == 0, (workdir.parent / f"{workdir.name}.log").read_text()[
        -3000:
    ]


def signal_at(process, workdir, step, number):
    """Sends the signal as soon as the log has `step` and there is a checkpoint (a slow disk may lag behind)."""
    path = workdir / "metrics.jsonl"
    saved = workdir / "checkpoints"
    end = time.monotonic() + 300
    while time.monotonic() < end:
        assert process.poll() is None, (workdir.parent / f"{workdir.name}.log").read_text()[-3000:]
        lines = metrics.read(path) if path.exists() else []
        if lines and lines[-1]["step"] >= step and list(saved.glob("[0-9]" * 8)):
            process.send_signal(number)
            return process.wait(timeout=120)
        time.sleep(0.002)
    raise AssertionError(f"step {step} was never reached")


def trace(workdir):
    lines = metrics.read(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in metrics.WALL_CLOCK} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(environment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finish(start(workdir, environment), workdir)
    return workdir


def test_killed_and_terminated_runs_resume_to_the_bit(environment, uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    first, second = random.randint(12, 26), random.randint(32, 46)
    print(f"SIGKILL at step {first}, SIGTERM at step {second}")

    assert signal_at(start(workdir, environment), workdir, first, signal.SIGKILL) == -signal.SIGKILL
    assert metrics.read(workdir / "metrics.jsonl")[-1]["step"] < STEPS, "it was killed too late"
    status = signal_at(start(workdir, environment), workdir, second, signal.SIGTERM)
    assert status == 0, "SIGTERM saves and exits with 0"
    stopped = metrics.read(workdir / "metrics.jsonl")[-1]["step"]
    assert stopped < STEPS, "it was stopped too late"
    assert (workdir / "checkpoints" / f"{stopped:08d}").is_dir(), "it saved at its last step"
    finish(start(workdir, environment), workdir)

    log = (tmp_path / "run.log").read_text()
    assert log.count("resuming from step") == 2
    whole, resumed = trace(uninterrupted), trace(workdir)
    assert [line["step"] for line in whole] == list(range(1, STEPS + 1))
    assert len(whole) == len(resumed)
    for a, b in zip(whole, resumed, strict=True):
        assert a == b
    weights, _, step = weights_file.load_model(workdir)
    expected, _, _ = weights_file.load_model(uninterrupted)
    assert step == STEPS
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(weights), strict=True
    ):
        assert (a == b).all(), jax.tree_util.keystr(path)


def test_text_loss_falls(uninterrupted):
    losses = [line["text_loss"] for line in trace(uninterrupted)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_a_workdir_of_another_model_is_an_error(environment, uninterrupted):
    command = [sys.executable, "-m", "tuna_jax.train", "--config=tests/training/tiny.py"]
    command += [f"--workdir={uninterrupted}", "--config.model.language.vocabulary=641"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, "a restart cannot mend it"
    assert "error:" in done.stderr and "641" in done.stderr and "--workdir" in done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.learning_rate=1", "config.learning_rate"),
        ("--config.optimizer.lr=1", "config.optimizer.lr"),
    ],
)
def test_an_unknown_key_on_the_command_line_is_an_error(environment, override, message, tmp_path):
    command = [sys.executable, "-m", "tuna_jax.train", "--config=tests/training/tiny.py"]
    command += [f"--workdir={tmp_path}", override]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, "a restart cannot mend it"
    assert message in done.stderr and "Traceback" not in done.stderr


def test_help_has_examples(environment):
    command = [sys.executable, "-m", "tuna_jax.train", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    for part in (
        "--config=experiments/emoji/demo.py",
        "--config.steps=500",
        "SIGTERM",
        "--workdir",
    ):
        assert part in done.stdout
