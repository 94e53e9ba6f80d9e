"""On a mounted bucket: training, the death of a host, resuming, export, a sweep and conversions.

The mount keeps what it knows for ever, refuses to rename folders, takes bytes only in their order, and sometimes fails.
"""

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

from tests.fixtures.bucket_mount import Mount, Options, can_mount
from tuna_jax import convert, evaluate
from tuna_jax.config import preset
from tuna_jax.conversion import image_vae_file
from tuna_jax.models import vae
from tuna_jax.sweeps import results
from tuna_jax.training import metrics
from tuna_jax.training.checkpoints import finished_checkpoints
from tuna_jax.utils import safetensors_files

ROOT = Path(__file__).parents[1]
STEPS = 8
PATIENCE = 600  # Seconds; the machine may be shared.
WORST = Options(rename_folders=False, stale=True)

pytestmark = pytest.mark.skipif(
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


def wait_for(pattern, store, process):
    end = time.monotonic() + PATIENCE
    while not list(store.glob(pattern)):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)


def test_a_run_on_a_mounted_bucket_equals_one_on_a_disk(environment, tmp_path, capsys):
    disk = start(tmp_path / "disk", environment)
    assert disk.wait(PATIENCE) == 0, disk.stderr.read()
    store, folder, refused = tmp_path / "store", tmp_path / "mount", []

    # The host dies during a save or soon after one.
    with Mount(store, folder, WORST) as mount:
        run = start(folder / "run", environment)
        wait_for("run/checkpoints/00000004/pending.txt", store, run)
        time.sleep(random.uniform(0, 0.3))
        mount.kill()
        run.send_signal(signal.SIGKILL)
        run.wait()
        refused += mount.refused()
    committed = [int(path.name) for path in finished_checkpoints(store / "run")]
    assert committed and committed[0] >= 2
    assert all("loss" in line for line in metrics.read(store / "run" / "metrics.jsonl"))

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
    assert log_of(store / "run") == log_of(tmp_path / "disk")
    expected = safetensors_files.read(tmp_path / "disk" / "model.safetensors")[0]
    exported = safetensors_files.read(store / "run" / "model.safetensors")[0]
    assert all(np.array_equal(exported[name], expected[name]) for name in expected)

    with Mount(store, folder, WORST) as mount:
        sweep = tmp_path / "sweep.py"
        sweep.write_text(SWEEP)
        for workdir, output in (
            (folder / "run", folder / "s"),
            (tmp_path / "disk", tmp_path / "s"),
        ):
            evaluate.main([f"--sweep={sweep}", f"--workdir={workdir}", f"--output={output}"])
        for name in ("torch", "torch.safetensors"):
            convert.main(["to_torch", str(folder / "run"), str(folder / name)])
        convert.main(["to_torch", str(tmp_path / "disk"), str(tmp_path / "torch.safetensors")])
        refused += mount.refused()
    assert scores(store / "s") == scores(tmp_path / "s")
    single = safetensors_files.read(tmp_path / "torch.safetensors")[0]
    (shard,) = (store / "torch").glob("*.safetensors")
    for path in (store / "torch.safetensors", shard):
        tensors = safetensors_files.read(path)[0]
        assert all(np.array_equal(tensors[name], single[name]) for name in single)
    assert not (store / "torch" / "unfinished_conversion.txt").exists()
    assert not refused, "a file was not written in order"


SWEEP = """
from ml_collections import ConfigDict

def get_config(arg=""):
    return ConfigDict({
        "name": "try", "batch": 8, "saved_items": 2,
        "tasks": {"name": {"kind": "answer", "question": "name", "count": 8}}})
"""


def scores(output):
    return [json.dumps(row["scores"]) for row in results.read(output / "results.jsonl")]
