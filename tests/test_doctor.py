"""`tuna-jax doctor` passes on one process and on two, and says what is broken on which of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tuna_jax import doctor
from tuna_jax.diagnostics import goldens, registry, runner

ROOT = Path(__file__).parents[1]


def test_the_help_has_all_checks():
    assert [check.name for check in registry.CHECKS] == list(doctor.CHECKS)
    assert all(check.mend for check in registry.CHECKS)


def test_one_process_passes(tmp_path, capsys):
    workdir = tmp_path / "run"
    status = doctor.main([f"--workdir={workdir}", "--megabytes=2"])
    output = capsys.readouterr().out
    assert status == 0, output
    report = json.loads((workdir / "doctor.json").read_text())
    assert report["complete"] and [row["check"] for row in report["checks"]] == list(doctor.CHECKS)
    results = {row["check"]: row["result"] for row in report["checks"]}
    # Others may use the disk and the cores.
    for name in ("storage", "data"):
        assert results.pop(name) in ("pass", "slow"), output
    assert set(results.values()) == {"pass"}, output
    for text in ("killed before step 10", "equal to the bit", "splash (interpreted)",
                 "no prediction exists for cpu", "9 checks"):  # fmt: skip
        assert text in " ".join(output.split()), output
    assert [path.name for path in workdir.iterdir()] == ["doctor.json"]  # Nothing else is left.


def test_a_failure_is_the_exit_status_and_the_other_checks_still_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(goldens, "FILE", tmp_path / "nowhere.safetensors")
    output = tmp_path / "report.json"
    assert doctor.main(["--checks=collectives,goldens", f"--output={output}"]) == 1
    rows = json.loads(output.read_text())["checks"]
    assert [(row["check"], row["result"]) for row in rows] == [
        ("goldens", "fail"),
        ("collectives", "pass"),
    ]
    assert "nowhere.safetensors" in rows[0]["measured"] and rows[0]["mend"]
    assert "1 pass, 0 slow, 1 fail" in capsys.readouterr().out


def test_an_experiment_that_does_not_start_fails_with_its_message(tmp_path):
    output = tmp_path / "report.json"
    experiment = ["--config=experiments/tuna/tuna_1p5b_stage1.py", "--config.vae=nowhere"]
    assert doctor.main(["--checks=data", f"--output={output}", *experiment]) == 1
    (row,) = json.loads(output.read_text())["checks"]
    assert row["result"] == "fail" and "nowhere" in row["measured"]


def test_no_device_is_in_use_before_resume_and_a_check_that_never_ends_is_ended(tmp_path):
    """Training in other processes needs the devices of this one."""
    script = f"""
import sys, time
from tuna_jax import doctor
from tuna_jax.compat import jax_internals
from tuna_jax.diagnostics import registry
from tuna_jax.diagnostics.finding import Finding
from tuna_jax.diagnostics.runner import Check
def used(context):
    return Finding(result="pass", measured=f"in use: {{jax_internals.backends_started()}}")
before = registry.CHECKS[: list(doctor.CHECKS).index("resume")]
forever = Check("devices", lambda context: time.sleep(60), "wait no longer")
registry.CHECKS = (*before, Check("resume", used, ""), forever)
sys.exit(doctor.main(["--limit=2", "--megabytes=1", "--output={tmp_path}/report.json"]))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 1 and "no end after" in done.stdout, done.stdout + done.stderr
    assert "--skip=devices" in done.stdout and "most recent call first" in done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert not report["complete"]
    assert [row["check"] for row in report["checks"]] == [
        "versions",
        "storage",
        "resume",
        "devices",
    ]
    assert report["checks"][2]["measured"] == "in use: False"


def test_secrets_are_not_in_the_file(monkeypatch):
    monkeypatch.setenv("JAX_API_TOKEN", "hf_secret")
    monkeypatch.setenv("JAX_VISIBLE", "yes")
    from tuna_jax.diagnostics.processes import Processes

    environment = runner.details([], Processes())["environment"]
    assert environment["JAX_VISIBLE"] == "yes" and "hf_secret" not in str(environment)


@pytest.mark.parametrize(
    "arguments", [["--checks=devises"], ["--skip=x"], ["--mesh=rows=2"], ["--megabytes=0"]]
)
def test_wrong_flags_are_named(arguments, capsys):
    with pytest.raises(SystemExit):
        doctor.main(arguments)
    assert arguments[0].partition("=")[0] in capsys.readouterr().err


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The reports and the statuses of both processes, by name of the run, and the output."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "launchers/local.py", "--processes=2", "--devices=1", "--"]
    command += [sys.executable, "tests/diagnostics/two_processes.py", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    reports = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    statuses = {
        name: [int((folder / f"{name}.{process}.status").read_text()) for process in (0, 1)]
        for name in reports
    }
    return reports, statuses, done.stdout


def row(report, name):
    return next(row for row in report["checks"] if row["check"] == name)


def test_two_processes_pass(two):
    reports, statuses, output = two
    report = reports["good"]
    assert statuses["good"] == [0, 0], output
    assert len(report["processes"]) == 2 and report["complete"]
    for name, text in {
        "versions": "the same code and versions on 2 processes",
        "storage": "per process, at the same time",
        "resume": "stopped before step 10, continued from step 5",
        "devices": "2 x cpu, 1 on each of 2 processes",
        "collectives": "fsdp (2 devices)",
    }.items():
        assert row(report, name)["result"] in ("pass", "slow")
        assert text in row(report, name)["measured"]
    # Only process 0 prints.
    assert "[1] check" not in output and "[0] check" in output


@pytest.mark.parametrize(
    ("run", "check", "says"),
    [
        ("version", "versions", "grain (0.2.17; process 0: "),
        ("stale", "storage", "a new file: after 10 s reader 1 does not list it"),
        ("error", "devices", "this device does not answer"),
        ("wrong", "collectives", "WRONG VALUES: permute"),
    ],
)
def test_what_is_broken_on_one_of_two_processes_fails_on_both(two, run, check, says):
    reports, statuses, _ = two
    assert statuses[run] == [1, 1]
    failed = row(reports[run], check)
    assert failed["result"] == "fail" and says in failed["measured"] and failed["mend"]
    if run in ("version", "error"):
        assert "process 1" in failed["measured"]
    if run == "error":  # The checks after it run.
        assert row(reports[run], "collectives")["result"] == "pass"
