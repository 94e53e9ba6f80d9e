"""Two processes with four devices each train with launchers/local.py, one receives SIGTERM, and one process resumes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tuna_jax.config import preset
from tuna_jax.conversion import image_vae_file
from tuna_jax.models import vae
from tuna_jax.training import metrics, weights_file

ROOT = Path(__file__).parents[2]
STEPS = 24
PATIENCE = 900  # Seconds; the machine may be shared.


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A VAE with random parameters, as in test_resume.py."""
    config = preset("tiny").vae
    params = vae.init(config, jax.random.key(0), image_only=True)
    numbers = np.zeros(config.latent_channels, np.float32)
    path = tmp_path_factory.mktemp("processes") / "vae.safetensors"
    image_vae_file.export(path, config, params, (numbers, numbers + 1))
    return {**os.environ, "TINY_VAE": str(path), "PYTHONPATH": str(ROOT)}


def start(workdir, environment, *, processes, devices):
    """Launches the tiny experiment with parameters and batch sharded over all devices."""
    command = [sys.executable, "launchers/local.py"]
    command += [f"--processes={processes}", f"--devices={devices}", "--"]
    command += [sys.executable, "-m", "tuna_jax.train", "--config=tests/training/tiny.py:evaluated"]
    command += [f"--workdir={workdir}", f"--config.steps={STEPS}"]
    command += ["--config.mesh.data=1", "--config.mesh.fsdp=-1", "--config.optimizer.warmup=10"]
    # AdamW compiles faster than Muon.
    command += ["--config.optimizer.algorithm=adamw", "--config.optimizer.learning_rate=2e-4"]
    command += ["--config.data.generation_rows=5", "--config.data.understanding_rows=3"]
    # A checkpoint at every step keeps two processes from finishing before the signal reaches both.
    command += [f"--config.checkpoint_every={1 if processes > 1 else STEPS}"]
    log = (workdir.parent / f"{workdir.name}.log").open("a")
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def finish(process, workdir):
    code = process.wait(timeout=PATIENCE)
    assert code == 0, (workdir.parent / f"{workdir.name}.log").read_text()[-5000:]


def trace(workdir):
    lines = metrics.read(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in metrics.WALL_CLOCK} for line in lines]


def wait_for(step, process, workdir):
    end = time.monotonic() + PATIENCE
    path = workdir / "metrics.jsonl"
    while not path.exists() or not trace(workdir) or trace(workdir)[-1]["step"] < step:
        log = (workdir.parent / f"{workdir.name}.log").read_text()[-5000:]
        assert process.poll() is None and time.monotonic() < end, log
        time.sleep(0.05)


def sheet(workdir, step):
    return np.asarray(Image.open(workdir / "samples" / f"{step:06d}.png"), int)


def test_a_signal_to_one_process_stops_all_and_fewer_processes_resume(environment, tmp_path):
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    finish(start(whole, environment, processes=1, devices=2), whole)

    two = start(workdir, environment, processes=2, devices=4)
    wait_for(2, two, workdir)
    children = Path(f"/proc/{two.pid}/task/{two.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGTERM)  # Only to one of them.
    finish(two, workdir)

    log = (tmp_path / "run.log").read_text()
    assert "data 1 x fsdp 8" in log
    stopped = trace(workdir)[-1]["step"]
    assert f"stopping at step {stopped}" in log
    assert stopped < STEPS, "it was stopped too late"
    assert (workdir / "checkpoints" / f"{stopped:08d}").is_dir()
    # Only one process wrote the log and the model.
    steps = [line["step"] for line in trace(workdir) if "loss" in line]
    assert steps == list(range(1, stopped + 1))
    # Both took part in the evaluation of every second step and in its contact sheet.
    scores = [
        {name: value for name, value in line.items() if name.startswith("evaluate/")}
        for line in trace(workdir)[: len(trace(whole))]
    ]
    assert len([line for line in scores if line]) == stopped // 2
    assert np.abs(sheet(workdir, 2) - sheet(whole, 2)).max() <= 1, "uint8 rounds"
    assert weights_file.load_model(workdir)[2] == stopped

    finish(start(workdir, environment, processes=1, devices=2), workdir)
    assert f"resuming from step {stopped}" in (tmp_path / "run.log").read_text()
    for line, expected in zip(trace(workdir), trace(whole), strict=True):
        assert line.keys() == expected.keys()
        for name in expected:
            np.testing.assert_allclose(
                line[name], expected[name], rtol=1e-6, err_msg=f"{name} {line}"
            )
