"""The batch script of launchers/slurm.py, executed with small replacements of Slurm's commands."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = {
    # Two tasks on this machine; as in a step of Slurm, SIGTERM reaches them only through scancel.
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done\n'
    "for task in 0 1; do\n"
    '  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & echo $! >> "$FAKE/tasks"\n'
    "done\n"
    "wait",
    "scancel": 'echo "scancel $*" >> "$FAKE/calls"; kill -TERM $(cat "$FAKE/tasks")',
    "scontrol": 'if [ "$1" = requeue ]; then echo "requeue $2" >> "$FAKE/calls"; else echo first; echo second; fi',
    "squeue": 'cat "$FAKE/queue"',
    "sbatch": 'cat > "$FAKE/submitted"',
}


@pytest.fixture
def fake(tmp_path):
    (tmp_path / "bin").mkdir()
    for name, body in TOOLS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "queue").write_text("")
    return tmp_path


def environment(fake):
    path = f"{fake / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "FAKE": str(fake)}


def slurm(fake, program, *arguments):
    own = ["--name=run", "--nodes=2", f"--directory={fake}", *arguments]
    command = [
        sys.executable,
        str(ROOT / "launchers" / "slurm.py"),
        *own,
        "--",
        "sh",
        "-c",
        program,
    ]
    return subprocess.run(
        [*command, "sh", f"--workdir={fake / 'run'}"],
        capture_output=True,
        text=True,
        env=environment(fake),
        timeout=60,
    )


def batch(fake, text):
    job = {"SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}
    return subprocess.Popen(
        ["bash", "-c", text], env={**environment(fake), **job}, stdout=subprocess.PIPE, text=True
    )


def test_tasks_find_each_other(fake):
    program = (
        "echo $TUNA_JAX_COORDINATOR $TUNA_JAX_PROCESSES $TUNA_JAX_PROCESS $JAX_LOCAL_DEVICE_IDS $1"
    )
    result = slurm(fake, program, "--dry_run", "--per=gpu", "--gpus_per_node=1")
    assert result.returncode == 0, result.stderr
    running = batch(fake, result.stdout)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    ends = f"--workdir={fake / 'run'}"
    assert sorted(output.splitlines()) == [f"first:20041 2 {n} {n} {ends}" for n in range(2)]
    assert not (fake / "calls").exists(), "a finished job is not requeued"


def test_a_stopped_job_saves_and_is_requeued(fake):
    program = "trap 'sleep 0.1; echo saved; exit 0' TERM; echo up; while :; do sleep 0.01; done"
    running = batch(fake, slurm(fake, program, "--dry_run").stdout)
    assert [running.stdout.readline() for _ in range(2)] == ["up\n"] * 2
    running.send_signal(signal.SIGTERM)
    output, _ = running.communicate(timeout=60)
    assert output.splitlines() == ["saved"] * 2
    assert (fake / "calls").read_text() == "scancel --signal=TERM 41.0\nrequeue 41\n"


def test_a_job_is_submitted_once(fake):
    assert slurm(fake, "true").returncode == 0
    assert (fake / "submitted").read_text() == slurm(fake, "true", "--dry_run").stdout
    assert (fake / "run").is_dir(), "Slurm does not create the folder of its log"
    (fake / "submitted").unlink()
    (fake / "queue").write_text("17 RUNNING\n")
    result = slurm(fake, "true")
    assert result.returncode == 0 and "job 17 RUNNING" in result.stdout
    assert not (fake / "submitted").exists()
