"""In a bucket, mounted or at its address: training, kills, resuming, export, a sweep and conversions.

The mount keeps what it knows for ever, refuses to rename folders, takes bytes only in their order, and sometimes fails.
KILLS sets how often each of the two runs is killed.
"""

import contextlib
import dataclasses
import json
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

from tests.fixtures.bucket_emulator import BUCKET, emulated
from tests.fixtures.bucket_mount import Mount, Options, can_mount
from tuna_jax import convert, evaluate
from tuna_jax.config import preset
from tuna_jax.conversion import image_vae_file
from tuna_jax.models import vae
from tuna_jax.sweeps import results
from tuna_jax.training import metrics, staging
from tuna_jax.training.checkpoints import finished_checkpoints
from tuna_jax.utils import buckets, safetensors_files

ROOT = Path(__file__).parents[1]
STEPS = 8
KILLS = int(os.environ.get("KILLS", 1))
PATIENCE = 600  # Seconds; the machine may be shared.
WORST = Options(rename_folders=False, stale=True)

mounting = pytest.mark.skipif(
    not can_mount(), reason="requires the permission to mount file systems"
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    config = preset("tiny").vae
    params = vae.init(config, jax.random.key(0), image_only=True)
    numbers = np.zeros(config.latent_channels, np.float32)
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    image_vae_file.export(path, config, params, (numbers, numbers + 1))
    return {**os.environ, "TINY_VAE": str(path), "PYTHONPATH": str(ROOT)}


def start(workdir, environment):
    command = [sys.executable, "-m", "tuna_jax.train", "--config=tests/training/tiny.py"]
    command += [f"--workdir={workdir}", f"--config.steps={STEPS}", "--config.checkpoint_every=2"]
    command += ["--config.optimizer.algorithm=adamw", "--config.optimizer.learning_rate=2e-4"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def log_of(workdir):
    lines = metrics.read(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in metrics.WALL_CLOCK} for line in lines]


@pytest.fixture(scope="module")
def disk(environment, tmp_path_factory):
    """The workdir of an undisturbed run on a disk, with a sweep and a conversion."""
    folder = tmp_path_factory.mktemp("on_disk")
    begun = time.monotonic()
    run = start(folder / "run", environment)
    assert run.wait(PATIENCE) == 0, run.stderr.read()
    (folder / "seconds.txt").write_text(str(time.monotonic() - begun))
    (folder / "sweep.py").write_text(SWEEP)
    evaluate.main(
        [
            f"--sweep={folder / 'sweep.py'}",
            f"--workdir={folder / 'run'}",
            f"--output={folder / 's'}",
        ]
    )
    convert.main(["to_torch", str(folder / "run"), str(folder / "torch.safetensors")])
    return folder


def some_time(disk):
    """Seconds until any moment of a run: from the import of JAX to the export."""
    return float((disk / "seconds.txt").read_text()) * random.uniform(0.2, 1.1)


def same_weights(one, other):
    tensors, expected = safetensors_files.read(one)[0], safetensors_files.read(other)[0]
    return tensors.keys() == expected.keys() and all(
        np.array_equal(tensors[name], expected[name]) for name in expected
    )


def wait_for(pattern, store, process):
    end = time.monotonic() + PATIENCE
    while not list(store.glob(pattern)):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)


@mounting
def test_a_run_on_a_mounted_bucket_equals_one_on_a_disk(environment, disk, tmp_path):
    store, folder, refused = tmp_path / "store", tmp_path / "mount", []
    committed = [0]

    # The host dies: first during a save or soon after one, then at any moment.
    for kill in range(KILLS):
        with Mount(store, folder, WORST) as mount:
            run = start(folder / "run", environment)
            if kill == 0:
                wait_for("run/checkpoints/00000004/pending.txt", store, run)
                time.sleep(random.uniform(0, 0.3))
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    run.wait(some_time(disk))
            mount.kill()
            run.kill()
            assert run.wait() in (0, -signal.SIGKILL), run.stderr.read()
            refused += mount.refused()
        steps = [int(path.name) for path in finished_checkpoints(store / "run")]
        assert steps and steps[-1] >= max(2, committed[-1]), "a committed checkpoint was lost"
        committed = steps
        log = metrics.read(store / "run" / "metrics.jsonl")
        assert all("loss" in line for line in log)
        assert log[-1]["step"] >= committed[-1], "the log lacks steps of a checkpoint"

    # The storage fails now and then; every restart continues from the last checkpoint.
    for seed in range(8):
        flaky = dataclasses.replace(WORST, eio=0.001, seed=seed)
        with Mount(store, folder, flaky) as mount:
            run = start(folder / "run", environment)
            error = run.communicate(timeout=PATIENCE)[1].decode()
            refused += mount.refused()
        assert run.returncode in (0, 1) and "CHECKPOINT DAMAGED" not in error, error
        assert run.returncode == 0 or "Input/output error" in error, error
        steps = [int(path.name) for path in finished_checkpoints(store / "run")]
        assert steps[-1] >= committed[-1], error
        committed = steps
        if run.returncode == 0:
            break
    assert run.returncode == 0, error
    assert log_of(store / "run") == log_of(disk / "run")
    assert same_weights(store / "run" / "model.safetensors", disk / "run" / "model.safetensors")

    with Mount(store, folder, WORST) as mount:
        sweep = f"--sweep={disk / 'sweep.py'}"
        evaluate.main([sweep, f"--workdir={folder / 'run'}", f"--output={folder / 's'}"])
        for name in ("torch", "torch.safetensors"):
            convert.main(["to_torch", str(folder / "run"), str(folder / name)])
        refused += mount.refused()
    assert scores(store / "s") == scores(disk / "s")
    (shard,) = (store / "torch").glob("*.safetensors")
    for path in (store / "torch.safetensors", shard):
        assert same_weights(path, disk / "torch.safetensors")
    assert not (store / "torch" / "unfinished_conversion.txt").exists()
    assert not refused, "a file was not written in order"


def test_a_run_at_the_address_of_a_bucket_equals_one_on_a_disk(
    environment, disk, tmp_path, monkeypatch
):
    run = f"gs://{BUCKET}/run"
    with emulated() as clients:
        for name, value in clients.items():
            monkeypatch.setenv(name, value)
        environment = environment | clients
        committed = 0
        for _ in range(KILLS):
            process = start(run, environment)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(some_time(disk))
            process.kill()
            assert process.wait() in (0, -signal.SIGKILL), process.stderr.read()
            with staging.staged(run) as folder:
                steps = [int(path.name) for path in finished_checkpoints(folder)]
                assert max(steps, default=0) >= committed, "a committed checkpoint was lost"
                committed = max(steps, default=0)
                if committed:
                    log = metrics.read(Path(folder, "metrics.jsonl"))
                    assert committed <= log[-1]["step"], "the log lacks steps of a checkpoint"
        process = start(run, environment)
        assert process.wait(PATIENCE) == 0, process.stderr.read()
        again = start(run, environment)  # There is nothing left to do, and nothing is lost.
        assert again.wait(PATIENCE) == 0, again.stderr.read()
        assert evaluate.main([f"--sweep={disk / 'sweep.py'}", f"--workdir={run}"]) == 0
        assert convert.main(["to_torch", run, f"gs://{BUCKET}/torch"]) == 0
        with staging.staged(run) as folder, staging.staged(f"gs://{BUCKET}/torch") as torch:
            assert log_of(Path(folder)) == log_of(disk / "run")
            assert same_weights(
                Path(folder, "model.safetensors"), disk / "run" / "model.safetensors"
            )
            assert scores(Path(folder, "sweeps", "try")) == scores(disk / "s")
            (shard,) = Path(torch).glob("*.safetensors")
            assert same_weights(shard, disk / "torch.safetensors")
        found = buckets.file_system().find(f"{BUCKET}/run/checkpoints")
        whole = {f"{step:08d}" for step in (STEPS - 4, STEPS - 2, STEPS)}
        assert {key.split("/")[3] for key in found} <= whole


SWEEP = """
from ml_collections import ConfigDict

def get_config(arg=""):
    return ConfigDict({
        "name": "try", "batch": 8, "saved_items": 2,
        "tasks": {"name": {"kind": "answer", "question": "name", "count": 8}}})
"""


def scores(output):
    return [json.dumps(row["scores"]) for row in results.read(output / "results.jsonl")]
