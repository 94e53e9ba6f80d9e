"""What all launchers share: their help, their refusals, names, secrets, and the supervisor that hands on SIGTERM."""

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
    found = importlib.util.spec_from_file_location("launching", LAUNCHERS / "launching.py")
    module = importlib.util.module_from_spec(found)
    sys.modules["launching"] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    return module


launching = load()


def call(script, *arguments, **environment):
    command = [sys.executable, str(LAUNCHERS / script), *arguments]
    variables = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=60)


@pytest.mark.parametrize("script", COMMANDS)
def test_help_teaches(script):
    done = call(script, "--help")
    assert done.returncode == 0
    for part in (
        "Examples:",
        "-- \\\n        python -m tuna_jax.train",
        "--dry_run",
        "same command again",
    ):
        assert part in done.stdout, part


@pytest.mark.parametrize("script", COMMANDS)
def test_a_secret_is_refused_and_not_repeated(script):
    own, value = COMMANDS[script], "hf_abcdefghij"
    done = call(script, *own, *SHARED, f"--config.token={value}", HF_TOKEN=value)
    assert done.returncode == 2 and "HF_TOKEN" in done.stderr
    assert value not in done.stdout + done.stderr
    done = call(script, *own, "--dry_run", f"--env=WANDB_API_KEY={value}", *SHARED)
    assert done.returncode == 2 and "--secret" in done.stderr
    assert value not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("local.py", [], "no training command"),
        ("local.py", ["--", "python", "-m", "tuna_jax.train"], "no --workdir"),
        ("local.py", ["--devices=0", *TRAINING], "--devices is at least 1"),
        ("local.py", ["--env=A", *TRAINING], "not NAME=VALUE"),
        ("gke.py", ["--name=Tuna_7B", *TRAINING], "Take --name=tuna-7b"),
        ("gke.py", ["--topology=v5e:4x4x4", *TRAINING], "v5e has 2 axes"),
        ("gke.py", ["--topology=v4:4x4x4", *TRAINING], "v5e, v5p, v6e, tpu7x"),
        ("gke.py", ["--secret=HF_TOKEN", *TRAINING], "VARIABLE=SECRET:KEY"),
        ("gke.py", ["--xpk", *TRAINING], "--cluster"),
        ("gke.py", ["--xpk", "--cluster=c", *TRAINING], "xpk storage attach"),
        ("slurm.py", TRAINING, "--workdir=gs://bucket/run is no folder"),
        ("gke.py", ["--", "python", "--workdir=runs/x"], "gs://BUCKET/x"),
        ("tpu_vm.py", ["--accelerator_type=v3-8", *TRAINING], "v5litepod-N"),
        ("tpu_vm.py", ["--revision=main", *TRAINING], "go together"),
        ("tpu_vm.py", ["--secret=HF_TOKEN", *TRAINING], "VARIABLE=SECRET"),
        ("slurm.py", ["--per=gpu", *SHARED], "--gpus_per_node"),
        ("slurm.py", ["--secret=A=b", *SHARED], "name of a variable alone"),
    ],
)
def test_wrong_arguments_are_named(script, arguments, message):
    own = [word for word in COMMANDS[script] if word.split("=")[0] not in str(arguments)]
    done = call(script, *own, *arguments)
    assert done.returncode == 2 and message in done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("given", "proposed"),
    [
        ("Tuna_7B", "tuna-7b"),
        ("7b", "run-7b"),
        ("-x-", "x"),
        ("a" * 60, "a" * 40),
        ("tuna.7b!", "tuna-7b"),
    ],
)
def test_names_that_cannot_be_get_one_that_can(given, proposed):
    with pytest.raises(launching.LaunchError, match=f"Take --name={proposed}$"):
        launching.dns_name(given)
    assert launching.dns_name(proposed) == proposed


def test_buckets_become_folders_wherever_they_are_named():
    words = ["--workdir=gs://my-bucket.1/a", "--config.init_from=gs://other/b", "x"]
    assert launching.mounted(words) == (
        ["--workdir=/gcs/my-bucket.1/a", "--config.init_from=/gcs/other/b", "x"],
        ["my-bucket.1", "other"],
    )


def test_workdir_is_found_however_it_is_written():
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
def test_supervisor_waits_for_the_save_and_tells_a_stop_from_an_end(shell, program, stop, code):
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
