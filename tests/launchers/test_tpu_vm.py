"""launchers/tpu_vm.py with a gcloud that records its calls, answers from files, and runs the scripts of hosts."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Each state check reads a line of a file, and each training run its exit code. With a home, scripts are executed.
GCLOUD = """\
#!/bin/sh
cd "$FAKE"
next() { head -n 1 "$1"; sed -i 1d "$1"; }
what="$3 $4"
if [ "$4" = ssh ]; then
  case "$*" in *tuna_jax.train*) what="$what train" ;; *requirements.txt*) what="$what install" ;; esac
fi
echo "$what" >> calls
case "$what" in
  *describe)
    state="$(next states)"
    if [ "$state" = NOT_FOUND ]; then echo "ERROR: NOT_FOUND: no such thing" >&2; exit 1; fi
    if [ "$state" = DENIED ]; then echo "ERROR: PERMISSION_DENIED" >&2; exit 1; fi
    echo "$state" ;;
  *scp)
    if [ -d home ]; then cp "$5" home/; fi ;;
  *ssh*)
    for word in "$@"; do case "$word" in --command=*) script="${word#--command=}" ;; esac; done
    case "$what" in *train) echo "$script" >> scripts ;; esac
    if [ -d home ]; then cd home && HOME="$PWD" exec sh -c "$script"; fi
    case "$what" in *train) exit "$(next codes)" ;; esac ;;
esac
"""


@pytest.fixture
def fake(tmp_path):
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "gcloud"
    tool.write_text(GCLOUD)
    tool.chmod(0o755)
    return tmp_path


def launch(fake, *arguments, states, codes=(), command=("python", "-m", "tuna_jax.train")):
    (fake / "states").write_text("".join(f"{state}\n" for state in states))
    (fake / "codes").write_text("".join(f"{code}\n" for code in codes))
    own = ["--name=run", "--accelerator_type=v5litepod-16", "--zone=z", "--poll=0"]
    words = [sys.executable, str(ROOT / "launchers" / "tpu_vm.py"), *own, *arguments]
    return subprocess.run(
        [*words, "--", *command, "--workdir=/shared/run"],
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "PATH": f"{fake / 'bin'}:{os.environ['PATH']}",
            "FAKE": str(fake),
            "TMPDIR": str(fake),
            "HF_TOKEN": "hf_notToBeSeen",
        },
    )


CLONE = ("--repository=https://example.com/x.git", "--revision=main")
WORK = ["tpu-vm ssh", "tpu-vm ssh install", "tpu-vm ssh train"]


def calls(fake):
    return [line for line in (fake / "calls").read_text().splitlines() if "describe" not in line]


def test_creates_waits_and_trains(fake):
    states = [
        "NOT_FOUND",
        "WAITING_FOR_RESOURCES",
        "PROVISIONING",
        "PROVISIONING",
        "ACTIVE",
        "ACTIVE",
    ]
    result = launch(fake, *CLONE, "--secret=HF_TOKEN=hugging", states=states, codes=[0])
    assert result.returncode == 0, result.stderr
    assert calls(fake) == ["queued-resources create", *WORK]
    seen = result.stdout + result.stderr + (fake / "scripts").read_text()
    assert "hf_notToBeSeen" not in seen and "--secret=hugging" in seen


def test_uses_an_existing_slice(fake):
    result = launch(fake, *CLONE, "--delete", states=["ACTIVE", "ACTIVE"], codes=[0])
    assert result.returncode == 0, result.stderr
    assert calls(fake) == [*WORK, "queued-resources delete"]


@pytest.mark.parametrize("code", [255, 143, 1, 0])
def test_restarts_after_preemption_with_any_exit_code(fake, code):
    states = ["ACTIVE", "SUSPENDED", "SUSPENDED", "PROVISIONING", "ACTIVE", "ACTIVE"]
    result = launch(fake, *CLONE, states=states, codes=[code, 0])
    assert result.returncode == 0, result.stderr
    again = ["queued-resources delete", "queued-resources create"]
    assert calls(fake) == [*WORK, *again, *WORK]
    first, second = (fake / "scripts").read_text().split("set -e\n")[1:]
    assert first == second, "the same command resumes"


def test_restarts_after_a_lost_connection(fake):
    states = ["READY"] * 7
    result = launch(fake, *CLONE, "--direct", states=states, codes=[255, 0])
    assert result.returncode == 0, result.stderr
    assert calls(fake) == [*WORK, *WORK]


def test_an_error_of_training_is_not_retried(fake):
    result = launch(fake, *CLONE, states=["ACTIVE", "ACTIVE"], codes=[1])
    assert result.returncode == 1
    assert calls(fake) == WORK


def test_the_number_of_restarts_is_limited(fake):
    result = launch(fake, *CLONE, "--retries=1", states=["ACTIVE", "FAILED"] * 2, codes=[143, 143])
    assert result.returncode == 143 and "after 1 retries" in result.stderr


def test_an_error_of_gcloud_is_reported(fake):
    result = launch(fake, *CLONE, states=["DENIED"])
    assert result.returncode == 2 and "PERMISSION_DENIED" in result.stderr


def test_hosts_run_the_clone_and_one_run_at_a_time(fake):
    """Executes the scripts of hosts in a folder that serves as the home of a host."""
    home = fake / "home"
    ready = home / "tuna_jax" / ".venv" / "ready"
    ready.parent.mkdir(parents=True)
    checksum = "cat requirements.txt pyproject.toml constraints.txt | cksum"
    requirements = subprocess.run(
        checksum, shell=True, cwd=ROOT, capture_output=True, text=True
    ).stdout
    ready.write_text(requirements)  # The requirements are installed already.
    # An earlier run with this name saves on SIGTERM, and the new one waits for it.
    save = "trap 'sleep 0.2; echo saved > former; exit 0' TERM; while :; do sleep 0.01; done"
    former = subprocess.Popen(["bash", "-c", save, "tuna_jax"], cwd=fake)
    (home / ".tuna_jax").mkdir()
    (home / ".tuna_jax" / "run.pid").write_text(f"{former.pid}\n")
    program = "test -f tuna_jax/train.py && cat ../../former && echo $TUNA_JAX_COORDINATOR $1 # tuna_jax.train"
    # A child process remains until it is waited for, which init does on a host.
    waiter = threading.Thread(target=former.wait)
    waiter.start()
    result = launch(fake, states=["ACTIVE", "ACTIVE"], command=("sh", "-c", program, "sh"))
    if result.returncode:
        former.kill()  # It was not asked to save.
    waiter.join()
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("saved\nauto --workdir=/shared/run\n")
    assert ready.read_text() == requirements, "the environment is kept"
