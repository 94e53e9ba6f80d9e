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
    "srun": 'echo "$*" > "$FAKE/srun"; while [ "${1#--}" != "$1" ]; do shift; done\n'
    "for task in 0 1; do\n"
    '  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & echo $! >> "$FAKE/tasks"\n'
    "done\n"
    'code=0; for child in $(cat "$FAKE/tasks"); do wait $child || code=$?; done; exit $code',
    "scancel": 'echo "scancel $*" >> "$FAKE/calls"; kill -TERM $(cat "$FAKE/tasks")',
    "scontrol": 'case "$1 $2" in\n'
    '  requeue*) echo "requeue $2" >> "$FAKE/calls" ;;\n'
    '  "show job") cat "$FAKE/job" ;;\n'
    "  *) echo first; echo second ;;\n"
    "esac",
    "squeue": 'cat "$FAKE/queue"',
    "sbatch": 'cat > "$FAKE/submitted"',
}

# Part of what `scontrol show job` prints.
JOB = """\
   SubmitTime=2026-11-30T10:00:00 EligibleTime=2026-11-30T10:00:00
   PreemptEligibleTime=2026-11-30T10:00:05 PreemptTime={}
"""


@pytest.fixture
def fake(tmp_path):
    (tmp_path / "bin").mkdir()
    for name, body in TOOLS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "queue").write_text("")
    (tmp_path / "job").write_text(JOB.format("None"))
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
    job["SLURM_CPUS_ON_NODE"] = "96"
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
    assert output.splitlines() == ["saved"] * 2 + ["queued again: stopped"]
    assert (fake / "calls").read_text() == "scancel --signal=TERM 41.0\nrequeue 41\n"


def test_a_preempted_job_whose_tasks_have_saved_is_requeued(fake):
    """Slurm signals a preemption to the tasks, unless the cluster sets send_user_signal; they exit with 0."""
    (fake / "job").write_text(JOB.format("2026-11-30T12:00:00"))
    running = batch(fake, slurm(fake, "true", "--dry_run").stdout)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 0 and output == "queued again: preempted\n"
    assert (fake / "calls").read_text() == "requeue 41\n"


@pytest.mark.parametrize(
    ("program", "code", "requeued"),
    [
        ("exit 1", 1, False),
        ("mkdir -p $1/00000200; exit 1", 1, True),
        ("mkdir -p $1/00000200; kill -9 $$", 137, True),
        ("mkdir -p $1/00000200; exit 2", 2, False),
        ("mkdir -p $1/00000050; exit 1", 1, False),
    ],
)
def test_an_error_after_a_new_checkpoint_queues_again(fake, program, code, requeued):
    checkpoints = fake / "run" / "checkpoints"
    (checkpoints / "00000100").mkdir(parents=True)
    program = program.replace("$1", str(checkpoints))
    running = batch(fake, slurm(fake, program, "--dry_run").stdout)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == code
    assert (fake / "calls").exists() == requeued
    assert ("checkpoint 00000100 to 00000200" in output) == requeued


@pytest.mark.parametrize(
    ("arguments", "cores"),
    [
        ((), 96),
        (("--per=gpu", "--gpus_per_node=8"), 12),
    ],
)
def test_processes_get_the_cores_of_their_node(fake, arguments, cores):
    """srun takes neither all cores nor sbatch's --cpus-per-task by itself."""
    text = slurm(fake, "true", "--dry_run", *arguments).stdout
    batch(fake, text).communicate(timeout=60)
    words = (fake / "srun").read_text().split()
    assert f"--cpus-per-task={cores}" in words
    assert {"--kill-on-bad-exit=1", "--export=ALL", "--label"} <= set(words)
    text = slurm(fake, "true", "--dry_run", "--cpus_per_task=5", "--exclusive").stdout
    assert "#SBATCH --cpus-per-task=5\n" in text and "#SBATCH --exclusive\n" in text


# Options of sbatch that may stand in a script (its manual, 25.05).
SBATCH = (
    *("account", "cpus-per-task", "exclusive", "export", "gpus-per-node", "job-name", "nodes"),
    *("ntasks-per-node", "open-mode", "output", "partition", "requeue", "signal", "time"),
)


def test_the_script_asks_for_what_sbatch_knows(fake):
    arguments = ["--gpus_per_node=8", "--time=1:00:00", "--partition=p", "--account=a"]
    arguments += ["--exclusive", "--cpus_per_task=4", "--warning=300", "--secret=HF_TOKEN"]
    text = slurm(fake, "true", "--dry_run", *arguments).stdout
    lines = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    given = {line.removeprefix("#SBATCH --").partition("=")[0] for line in lines}
    assert given == set(SBATCH)
    assert "#SBATCH --signal=B:TERM@300" in lines and "#SBATCH --open-mode=append" in lines


def test_a_job_is_submitted_once(fake):
    assert slurm(fake, "true").returncode == 0
    assert (fake / "submitted").read_text() == slurm(fake, "true", "--dry_run").stdout
    assert (fake / "run").is_dir(), "Slurm does not create the folder of its log"
    (fake / "submitted").unlink()
    (fake / "queue").write_text("17 RUNNING\n")
    result = slurm(fake, "true")
    assert result.returncode == 0 and "job 17 RUNNING" in result.stdout
    assert not (fake / "submitted").exists()
