"""launchers/local.sh without a network: help, errors, and the search for an interpreter."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "launchers" / "local.sh"
COMMANDS = ("demo", "test", "check", "setup", "run")


def call(*arguments, **environment):
    return subprocess.run(
        ["bash", str(LOCAL), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )


def interpreter(path, body):
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    "arguments", [("--help",), ("-h",), ("help",), ("demo", "--help"), ("test", "--help")]
)
def test_help_names_every_command(arguments):
    result = call(*arguments)
    assert result.returncode == 0
    for command in COMMANDS:
        assert f"\n  {command}" in result.stdout


def test_no_command_prints_the_usage_and_fails():
    result = call()
    assert result.returncode == 2 and "usage:" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dmeo",), "dmeo"),
        (("demo", "--steps=3"), "--steps=3"),
        (("demo", "--workdir"), "--workdir"),
        (("setup", "all"), "'dev', 'torch' or 'plan'"),
        (("run",), "command"),
    ],
)
def test_invalid_arguments_are_errors_before_an_installation(arguments, message, tmp_path):
    result = call(*arguments, TUNA_JAX_VENV=str(tmp_path / "venv"))
    assert result.returncode == 2
    assert message in result.stderr
    assert not (tmp_path / "venv").exists()


def test_an_old_python_is_an_error(tmp_path):
    old = interpreter(tmp_path / "python", "exit 1")
    result = call("setup", PYTHON=old, TUNA_JAX_VENV=str(tmp_path / "venv"))
    assert result.returncode == 2
    assert "3.11" in result.stderr and old in result.stderr


def test_setup_runs_once_and_again_when_requirements_change(tmp_path):
    """With an interpreter that records its arguments."""
    venv, log = tmp_path / "venv", tmp_path / "log"
    body = (
        f'echo "$@" >> {log}\n'
        'if [ "$1" = -m ] && [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi'
    )
    python = interpreter(tmp_path / "python", body)
    settings = {"PYTHON": python, "TUNA_JAX_VENV": str(venv)}

    assert call("setup", **settings).returncode == 0
    first = log.read_text()
    assert "-m venv" in first and f"--editable {ROOT}\n" in first

    assert call("setup", **settings).returncode == 0
    assert log.read_text() == first, "a second call does nothing"

    (venv / ".ready-run").write_text("of other requirements\n")
    assert call("setup", **settings).returncode == 0
    assert log.read_text().count(f"--editable {ROOT}\n") == 2
    assert log.read_text().count("-m venv") == 1, "the environment is kept"

    assert call("setup", "dev", **settings).returncode == 0
    assert "[dev]" in log.read_text()


def test_demo_trains_and_then_evaluates_the_same_workdir(tmp_path):
    venv, log = tmp_path / "venv", tmp_path / "log"
    python = interpreter(
        tmp_path / "python",
        f'echo "$@" >> {log}\n'
        'if [ "$1" = -m ] && [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi',
    )
    result = call(
        "demo", "--workdir=runs/x", "--config.steps=5", PYTHON=python, TUNA_JAX_VENV=str(venv)
    )
    assert result.returncode == 0, result.stderr
    calls = log.read_text().splitlines()
    assert (
        "-m tuna_jax.train --config=experiments/emoji/demo.py --workdir=runs/x --config.steps=5"
        in calls[-2]
    )
    assert "-m tuna_jax.evaluate --workdir=runs/x" in calls[-1]


def test_demo_does_not_evaluate_after_a_failed_training(tmp_path):
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    log = tmp_path / "log"
    interpreter(
        venv / "bin" / "python", f'echo "$@" >> {log}\ncase "$2" in tuna_jax.train) exit 1;; esac'
    )
    result = call("demo", TUNA_JAX_VENV=str(venv))
    assert result.returncode == 1
    assert "tuna_jax.evaluate" not in log.read_text()


def test_ci_runs_the_test_command_of_the_readme():
    command = "./launchers/local.sh test"
    readme = (ROOT / "README.md").read_text().splitlines()
    assert command in [line.partition("#")[0].strip() for line in readme]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_run_takes_commands_and_modules(tmp_path):
    venv, log = tmp_path / "venv", tmp_path / "log"
    (venv / "bin").mkdir(parents=True)
    interpreter(venv / "bin" / "python", f'echo "$@" >> {log}')
    for command in (("train", "--help"), ("tuna_jax.planning.golden_shardings",)):
        assert call("run", *command, TUNA_JAX_VENV=str(venv)).returncode == 0
    calls = log.read_text().splitlines()
    assert "-m tuna_jax train --help" in calls
    assert "-m tuna_jax.planning.golden_shardings" in calls
