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
CLOUD = ["--name=tuna-7b", "--project=project", "--cluster=pods", "--zone=us-east5-a"]
SLICES = ["--topology=v5p:2x2x4", "--slices=2"]
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
    "tpu_vm_slices": [
        "tpu_vm.py",
        "--name=tuna-7b",
        "--accelerator_type=v5p-32",
        "--slices=2",
        "--zone=us-east5-a",
        "--internal_ips",
        "--iap",
        "--subnetwork=private",
        *training("gs://bucket/tuna-7b"),
        "--config.data.streams.draw.manifest=gs://bucket/captions.jsonl",
    ],
    "tpu_vm_logs": ["tpu_vm.py", "--name=tuna-7b", "--zone=us-east5-a", "--logs"],
    "gke_two_slices": [
        "gke.py",
        "--name=tuna-7b",
        *SLICES,
        IMAGE,
        "--priority=high",
        "--service_account=tuna",
        "--secret=HF_TOKEN=huggingface:token",
        "--local_saves=/dev/shm/tuna_jax",
        *training("gs://bucket/tuna-7b"),
        "--config.local_saves.every=50",
        "--config.data.streams.draw.manifest=gs://bucket/captions.jsonl",
    ],
    "gke_direct": [
        "gke.py",
        "--name=tuna-7b-sweep",
        "--topology=v6e:4x4",
        IMAGE,
        "--buckets=direct",
        "--pod_network",
        "--compile_cache=gs://bucket/compiled",
        *("--", "python", "-m", "tuna_jax.evaluate_benchmarks", "--output=gs://bucket/scores"),
    ],
    "gke_setup": [
        "gke.py",
        "--setup",
        *CLOUD[1:],
        "--bucket=bucket",
        IMAGE,
        "--namespace=research",
    ],
    "gke_node_pools": ["gke.py", "--create_node_pool", *CLOUD, *SLICES, "--spot"],
    "gke_node_pools_tpu7x": [
        *("gke.py", "--create_node_pool", *CLOUD, "--topology=tpu7x:2x2x2", "--reservation=ours"),
    ],
    "gke_build_docker": ["gke.py", "--build=docker", IMAGE],
    "gke_build_cloud": ["gke.py", "--build=cloud", "--project=project", IMAGE],
    "gke_build_cuda": ["gke.py", "--build=docker", "--device=cuda", IMAGE],
    "gke_serve": [
        *("gke.py", "--serve", "--name=tuna", "--topology=v6e:2x2", "--replicas=2", IMAGE),
        *("--service_account=tuna", "--secret=TUNA_JAX_API_KEYS=tuna:keys"),
        *(
            "--compile_cache=gs://bucket/compiled",
            "--",
            "tuna-jax",
            "serve",
            "--model=gs://bucket/model",
        ),
    ],
    "gke_serve_delete": ["gke.py", "--serve", "--delete", "--name=tuna"],
    "gke_logs": ["gke.py", "--logs=all", "--name=tuna-7b"],
    "gke_logs_past": ["gke.py", "--logs=past", "--name=tuna-7b", "--project=project"],
    "gke_delete": ["gke.py", "--delete", "--name=tuna-7b"],
    "gke_delete_node_pool": ["gke.py", "--delete_node_pool", *CLOUD, "--slices=2"],
    "gke_teardown": ["gke.py", "--teardown", *CLOUD[1:], IMAGE],
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
        "--storage=shared",
        *training("/shared/runs/tuna-7b"),
    ],
    "slurm_per_node": [
        "slurm.py",
        "--name=tuna-7b",
        "--nodes=4",
        "--gpus_per_node=8",
        "--time=24:00:00",
        "--exclusive",
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
