"""The dry run of every launcher, byte for byte; `python tests/launchers/test_goldens.py` writes the goldens again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDENS = Path(__file__).parent / "goldens"
SECRET = "hf_thisMustNotBeSeenAnywhere"


def training(workdir, config="experiments/tuna/tuna_7b_stage1.py"):
    return ["--", "python", "-m", "tuna_jax.train", f"--config={config}", f"--workdir={workdir}"]


IMAGE = "--image=us-docker.pkg.dev/project/images/tuna:1"
CASES = {
    "local": [
        "local.py",
        "--processes=2",
        "--devices=4",
        "--port=12345",
        *training("runs/emoji", "experiments/emoji/demo.py"),
    ],
    "tpu_vm_queued": [
        "tpu_vm.py",
        "--name=tuna-7b",
        "--accelerator_type=v5litepod-16",
        "--zone=us-west4-a",
        "--project=project",
        "--spot",
        "--secret=HF_TOKEN=huggingface",
        "--env=TUNA_JAX_DATA=/tmp/data",
        *training("gs://bucket/tuna-7b"),
    ],
    "tpu_vm_direct": [
        "tpu_vm.py",
        "--name=tuna-7b",
        "--direct",
        "--accelerator_type=v6e-16",
        "--zone=us-east5-b",
        "--network=net",
        "--repository=https://example.com/tuna_jax.git",
        "--revision=main",
        "--compile_cache=gs://bucket/compiled",
        *training("gs://bucket/tuna-7b"),
    ],
    "gke_two_slices": [
        "gke.py",
        "--name=tuna-7b",
        "--topology=v5p:2x2x4",
        "--slices=2",
        IMAGE,
        "--priority=high",
        "--secret=HF_TOKEN=huggingface:token",
        *training("gs://bucket/tuna-7b"),
    ],
    "gke_one_host": [
        "gke.py",
        "--name=tuna-1p5b",
        "--topology=v5e:2x4",
        IMAGE,
        "--spot",
        "--queue=tpu",
        "--service_account=trainer",
        "--namespace=research",
        "--max_restarts=3",
        *training("/data/runs/tuna-1p5b"),
    ],
    "gke_xpk": [
        "gke.py",
        "--xpk",
        "--cluster=cluster",
        "--zone=us-east5-a",
        "--name=tuna-7b",
        "--topology=v5p:4x4x4",
        "--slices=2",
        IMAGE,
        "--priority=high",
        *training("/shared/runs/tuna-7b"),
    ],
    "slurm_per_node": [
        "slurm.py",
        "--name=tuna-7b",
        "--nodes=4",
        "--gpus_per_node=8",
        "--time=24:00:00",
        "--partition=gpu",
        "--secret=HF_TOKEN",
        "--directory=/shared/tuna_jax",
        *training("/shared/runs/tuna-7b"),
    ],
    "slurm_per_gpu": [
        "slurm.py",
        "--name=tuna-7b",
        "--nodes=2",
        "--gpus_per_node=4",
        "--per=gpu",
        "--account=lab",
        "--cpus_per_task=12",
        "--directory=/shared/tuna_jax",
        *training("/shared/runs/tuna-7b"),
    ],
}


def dry_run(name):
    script, *arguments = CASES[name]
    command = [sys.executable, str(ROOT / "launchers" / script), "--dry_run", *arguments]
    # Tokens in the environment, as on a user's machine; they must not be printed.
    environment = {
        "PATH": os.environ["PATH"],
        "HF_TOKEN": SECRET,
        "WANDB_API_KEY": SECRET,
        "TMPDIR": "/tmp",
    }
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout.replace(str(ROOT), "ROOT")


@pytest.mark.parametrize("name", CASES)
def test_dry_runs_are_unchanged(name):
    printed = dry_run(name)
    assert SECRET not in printed
    assert printed == (GOLDENS / f"{name}.txt").read_text(encoding="utf-8"), (
        f"{name} changed; if that is intended: python tests/launchers/test_goldens.py"
    )


def test_every_golden_has_a_case():
    assert {path.stem for path in GOLDENS.iterdir()} == set(CASES)


if __name__ == "__main__":
    for case in CASES:
        (GOLDENS / f"{case}.txt").write_text(dry_run(case), encoding="utf-8")
