"""Commands teach their use, and name what is wrong with an argument."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tuna_jax.cli import main
from tuna_jax.cli.main import COMMANDS


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Restores the variables that commands set for their process, such as `plan` and `convert`."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


SWEEP = ["evaluate", "--sweep=experiments/sweeps/emoji.py"]
STUDY = ["ablate", "--study=experiments/ablations/design.py"]


def _run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tuna_jax", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_of_the_command(command: str) -> None:
    done = _run(command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: tuna-jax {command}" in done.stdout
    assert f"tuna-jax {command} " in done.stdout.partition("usage:")[2].partition("\n\n")[2]
    assert max(map(len, done.stdout.splitlines())) <= 130


def test_a_module_runs_as_before() -> None:
    command = [sys.executable, "-m", "tuna_jax.convert", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "usage: tuna-jax convert" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--config=nowhere.py", "--workdir={tmp}"], "nowhere.py"),
        (["train", "--config=experiments/emoji/demo.py"], "--workdir"),
        (
            ["train", "--config=experiments/emoji/demo.py", "--workdir={tmp}", "--config.kind=x"],
            "config.kind",
        ),
        (["generate", "--model=nowhere", "--prompt=a cat"], "nowhere"),
        (["generate", "--model=nowhere"], "--prompts=FILE"),
        (["generate", "--model=m", "--image=p.png"], "--question"),
        (["generate", "--model=m", "--prompt=a", "--mesh=rows=2"], "--mesh"),
        (["evaluate", "--workdir=nowhere"], "nowhere"),
        ([*SWEEP, "--workdir=nowhere", "--output={tmp}"], "nowhere"),
        ([*SWEEP, "--workdir=w", "--sweep.bach=3"], "sweep.bach"),
        ([*SWEEP, "--workdir=w", "--output={tmp}", "--sweep.settings.guidance=()"], "guidance"),
        ([*SWEEP, "--workdir=w", "--learning_curve"], "--learning_curve"),
        (["ablate", "--study=nowhere.py", "--workdir={tmp}"], "nowhere.py"),
        ([*STUDY, "--workdir={tmp}", "--study.evry=3"], "study.evry"),
        ([*STUDY, "--workdir={tmp}", "--arms=cascad"], "cascad"),
        ([*STUDY, "--workdir={tmp}", "--report"], "results.jsonl"),
        (["convert", "inspect", "nowhere"], "nowhere"),
        (["convert", "verify"], "--manifest"),
        (["plan", "--config=experiments/tuna/tuna_1p5b_stage1.py"], "--topology"),
        (["plan", "--collect=docs/generated/plans"], "--page"),
        (["evaluate-vqa", "--model=m"], "--questions"),
        (["evaluate-benchmarks", "--benchmark=geneval", "--output={tmp}"], "--model"),
        (["evaluate-images", "reconstruction"], "--images"),
        (["encode-latents", "--manifest=nowhere.jsonl", "--output={tmp}"], "nowhere.jsonl"),
        (["export", "--model=nowhere", "--output={tmp}"], "nowhere"),
        (["benchmark", "sample", "--rounds=0"], "rounds"),
    ],
)
def test_a_wrong_argument_is_named(
    arguments: list[str], named: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The entry point in this process: an exception, which would be a traceback, fails the test."""
    try:
        status = main.main([argument.format(tmp=tmp_path) for argument in arguments])
    except SystemExit as error:
        status = error.code
    assert status not in (None, 0)
    stderr = capfd.readouterr().err
    assert named in (status if isinstance(status, str) else stderr)
    assert "Traceback" not in stderr


def test_a_process_ends_with_the_status_of_its_command() -> None:
    done = _run("generate", "--model=nowhere", "--prompt=a cat")
    assert done.returncode == 1
    assert "nowhere" in done.stderr and "Traceback" not in done.stderr
