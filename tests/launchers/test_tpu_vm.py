"""launchers/tpu_vm.py against a gcloud that records its calls, answers as told, and runs what hosts are to run."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# States are taken from a file, a line a look; the code of each training run from another. With a home, scripts are run.
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


def test_makes_waits_and_trains(fake):
    states = [
        "NOT_FOUND",
        "WAITING_FOR_RESOURCES",
        "PROVISIONING",
        "PROVISIONING",
        "ACTIVE",
        "ACTIVE",
    ]
    done = launch(fake, *CLONE, "--secret=HF_TOKEN=hugging", states=states, codes=[0])
    assert done.returncode == 0, done.stderr
    assert calls(fake) == ["queued-resources create", *WORK]
    seen = done.stdout + done.stderr + (fake / "scripts").read_text()
    assert "hf_notToBeSeen" not in seen and "--secret=hugging" in seen


def test_takes_what_is_there(fake):
    done = launch(fake, *CLONE, "--delete", states=["ACTIVE", "ACTIVE"], codes=[0])
    assert done.returncode == 0, done.stderr
    assert calls(fake) == [*WORK, "queued-resources delete"]


@pytest.mark.parametrize("code", [255, 143, 1, 0])
def test_begins_again_after_preemption_however_it_shows(fake, code):
    states = ["ACTIVE", "SUSPENDED", "SUSPENDED", "PROVISIONING", "ACTIVE", "ACTIVE"]
    done = launch(fake, *CLONE, states=states, codes=[code, 0])
    assert done.returncode == 0, done.stderr
    again = ["queued-resources delete", "queued-resources create"]
    assert calls(fake) == [*WORK, *again, *WORK]
    first, second = (fake / "scripts").read_text().split("set -e\n")[1:]
    assert first == second, "the same command resumes"


def test_begins_again_after_a_lost_connection(fake):
    states = ["READY"] * 7
    done = launch(fake, *CLONE, "--direct", states=states, codes=[255, 0])
    assert done.returncode == 0, done.stderr
    assert calls(fake) == [*WORK, *WORK]


def test_an_error_of_training_is_not_repeated(fake):
    done = launch(fake, *CLONE, states=["ACTIVE", "ACTIVE"], codes=[1])
    assert done.returncode == 1
    assert calls(fake) == WORK


def test_gives_up(fake):
    done = launch(fake, *CLONE, "--retries=1", states=["ACTIVE", "FAILED"] * 2, codes=[143, 143])
    assert done.returncode == 143 and "giving up after 1" in done.stderr


def test_a_refusal_of_gcloud_is_shown(fake):
    done = launch(fake, *CLONE, states=["DENIED"])
    assert done.returncode == 2 and "PERMISSION_DENIED" in done.stderr


def test_what_hosts_run_is_the_clone_and_one_run_at_a_time(fake):
    """The scripts for hosts, run for real in a folder that plays the home of one."""
    home = fake / "home"
    ready = home / "tuna_jax" / ".venv" / "ready"
    ready.parent.mkdir(parents=True)
    listed = "cat requirements.txt pyproject.toml | cksum"
    wanted = subprocess.run(listed, shell=True, cwd=ROOT, capture_output=True, text=True).stdout
    ready.write_text(wanted)  # Installed already: nothing is downloaded.
    # A former run of this name: it saves when it is asked to end, and this one waits for that.
    save = "trap 'sleep 0.2; echo saved > former; exit 0' TERM; while :; do sleep 0.01; done"
    former = subprocess.Popen(["bash", "-c", save, "tuna_jax"], cwd=fake)
    (home / ".tuna_jax").mkdir()
    (home / ".tuna_jax" / "run.pid").write_text(f"{former.pid}\n")
    program = "test -f tuna_jax/train.py && cat ../../former && echo $TUNA_JAX_COORDINATOR $1 # tuna_jax.train"
    # A child stays until it is waited for; a host's init does that at once.
    waiter = threading.Thread(target=former.wait)
    waiter.start()
    done = launch(fake, states=["ACTIVE", "ACTIVE"], command=("sh", "-c", program, "sh"))
    waiter.join()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("saved\nauto --workdir=/shared/run\n")
    assert ready.read_text() == wanted, "the environment is kept"
