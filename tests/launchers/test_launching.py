"""Common code of the launchers: help, errors, names, secrets, and the supervisor that forwards SIGTERM."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCHERS = ROOT / "launchers"
TRAINING = ["--", "python", "-m", "tuna_jax.train", "--config=c.py", "--workdir=gs://bucket/run"]
SHARED = [*TRAINING[:-1], "--workdir=/shared/run"]
COMMANDS = {
    "local.py": [],
    "tpu_vm.py": ["--name=run", "--accelerator_type=v5litepod-16", "--zone=us-west4-a"],
    "gke.py": ["--name=run", "--topology=v5e:4x4", "--image=image:1"],
    "slurm.py": ["--name=run", "--nodes=2"],
}


def load():
    spec = importlib.util.spec_from_file_location("launching", LAUNCHERS / "launching.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["launching"] = module  # Dataclasses look up their module.
    spec.loader.exec_module(module)
    return module


launching = load()


def call(script, *arguments, **environment):
    command = [sys.executable, str(LAUNCHERS / script), *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=60)


@pytest.mark.parametrize("script", COMMANDS)
def test_help_has_examples(script):
    result = call(script, "--help")
    assert result.returncode == 0
    for part in (
        "Examples:",
        "-- \\\n        python -m tuna_jax.train",
        "--dry_run",
        "same command again",
    ):
        assert part in result.stdout, part


@pytest.mark.parametrize("script", COMMANDS)
def test_a_secret_is_an_error_and_not_printed(script):
    own, value = COMMANDS[script], "hf_abcdefghij"
    result = call(script, *own, *SHARED, f"--config.token={value}", HF_TOKEN=value)
    assert result.returncode == 2 and "HF_TOKEN" in result.stderr
    assert value not in result.stdout + result.stderr
    result = call(script, *own, "--dry_run", f"--env=WANDB_API_KEY={value}", *SHARED)
    assert result.returncode == 2 and "--secret" in result.stderr
    assert value not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("local.py", [], "--config=experiments/emoji/demo.py"),
        ("local.py", ["--", "python", "-m", "tuna_jax.train"], "--workdir"),
        ("local.py", ["--devices=0", *TRAINING], "--devices"),
        ("local.py", ["--env=A", *TRAINING], "NAME=VALUE"),
        ("gke.py", ["--name=Tuna_7B", *TRAINING], "--name=tuna-7b"),
        ("gke.py", ["--topology=v5e:4x4x4", *TRAINING], "--topology=v5e:4x4x4"),
        ("gke.py", ["--topology=v4:4x4x4", *TRAINING], "v5e, v5p, v6e, tpu7x"),
        ("gke.py", ["--secret=HF_TOKEN", *TRAINING], "VARIABLE=SECRET:KEY"),
        ("gke.py", ["--xpk", *TRAINING], "--cluster"),
        ("gke.py", ["--xpk", "--cluster=c", *TRAINING], "xpk storage attach"),
        ("slurm.py", TRAINING, "--workdir=gs://bucket/run"),
        ("gke.py", ["--", "python", "--workdir=runs/x"], "gs://BUCKET/x"),
        ("tpu_vm.py", ["--accelerator_type=v3-8", *TRAINING], "v5litepod-N"),
        ("tpu_vm.py", ["--revision=main", *TRAINING], "--repository"),
        ("tpu_vm.py", ["--secret=HF_TOKEN", *TRAINING], "VARIABLE=SECRET"),
        ("slurm.py", ["--per=gpu", *SHARED], "--gpus_per_node"),
        ("slurm.py", ["--secret=A=b", *SHARED], "--secret"),
    ],
)
def test_invalid_arguments_are_named(script, arguments, message):
    own = [word for word in COMMANDS[script] if word.split("=")[0] not in str(arguments)]
    result = call(script, *own, *arguments)
    assert result.returncode == 2 and message in result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("name", "proposed"),
    [
        ("Tuna_7B", "tuna-7b"),
        ("7b", "run-7b"),
        ("-x-", "x"),
        ("a" * 60, "a" * 40),
        ("tuna.7b!", "tuna-7b"),
    ],
)
def test_invalid_names_get_a_valid_proposal(name, proposed):
    with pytest.raises(launching.LaunchError, match=f"--name={proposed}$"):
        launching.dns_name(name)
    assert launching.dns_name(proposed) == proposed


def test_buckets_become_folders():
    words = ["--workdir=gs://my-bucket.1/a", "--config.init_from=gs://other/b", "x"]
    assert launching.mounted(words) == (
        ["--workdir=/gcs/my-bucket.1/a", "--config.init_from=/gcs/other/b", "x"],
        ["my-bucket.1", "other"],
    )


def test_workdir_of_a_command():
    assert launching.workdir(["x", "--workdir", "runs/a/"]) == "runs/a"
    assert launching.workdir(["x", "--workdir=gs://b/c"]) == "gs://b/c"


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize(
    ("program", "stop", "code"),
    [
        ("exit 0", False, 0),
        ("exit 3", False, 3),
        ("trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done", True, 143),
        ("trap 'sleep 0.1; exit 5' TERM; echo up; while :; do sleep 0.01; done", True, 5),
    ],
)
def test_the_supervisor_waits_for_the_save_and_reports_a_stop(shell, program, stop, code):
    script = launching.supervised(["sh", "-c", program], ["export A='b c'"])
    running = subprocess.Popen([shell, "-c", script], stdout=subprocess.PIPE, text=True)
    if stop:
        assert running.stdout.readline() == "up\n"
        running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=60) == code
    running.stdout.close()


def test_every_kind_of_tpu_is_in_the_documentation():
    page = (ROOT / "docs" / "pods.md").read_text()
    for tpu in launching.TPUS.values():
        assert f"| {tpu.name} | {tpu.prefix}N | {tpu.runtime} | {tpu.label} |" in page
        for flag in tpu.libtpu:
            assert f"`{flag.lstrip('-')}`" in page
