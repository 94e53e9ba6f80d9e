"""launchers/tpu_vm.py with a gcloud that records its calls, answers from files, and runs the scripts of hosts."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.launchers.test_launching import load

ROOT = Path(__file__).parents[2]

# Each state check reads a line of a file, and each training run its exit code. With homes, which are those of hosts,
# scripts are executed on each of them.
GCLOUD = """\
#!/bin/bash
cd "$FAKE"
next() { head -n 1 "$1"; sed -i 1d "$1"; }
what="$3 $4"
if [ "$1 $2" = "storage ls" ]; then cat listing; exit; fi
if [ "$4" = ssh ]; then
  case "$*" in
    *checkpoints*|*tuna_jax.train*) what="$what start" ;;
    *requirements.txt*) what="$what install" ;;
    *run.pid*|*"/run\\""*) what="$what follow" ;;
  esac
fi
echo "$what" >> calls
echo "$*" >> words
case "$what" in
  *describe)
    state="$(next states)"
    if [ "$state" = NOT_FOUND ]; then echo "ERROR: NOT_FOUND: no such thing" >&2; exit 1; fi
    if [ "$state" = DENIED ]; then echo "ERROR: PERMISSION_DENIED" >&2; exit 1; fi
    echo "$state" ;;
  *scp)
    for home in home*; do if [ -d "$home" ]; then cp "$5" "$home"; fi; done ;;
  *ssh*)
    for word in "$@"; do case "$word" in --command=*) script="${word#--command=}" ;; esac; done
    case "$what" in *start) echo "$script" >> scripts ;; esac
    if [ -d home-w-0 ]; then
      worst=0
      for home in home*; do
        (cd "$home" && HOME="$PWD" HOST="$home" exec sh -c "$script") || worst=$?
      done
      exit "$worst"
    fi
    case "$what" in *follow) exit "$(next codes)" ;; esac ;;
esac
"""

TOOLS = {
    "gcloud": GCLOUD,
    "hostname": '#!/bin/sh\necho "$HOST"\n',
    # The metadata of a host.
    "curl": '#!/bin/sh\nif [ -e "$FAKE/metadata-$HOST" ]; then cat "$FAKE/metadata-$HOST"; else exit 22; fi\n',
}


@pytest.fixture
def fake(tmp_path):
    (tmp_path / "bin").mkdir()
    for name, text in TOOLS.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "listing").touch()
    return tmp_path


TRAIN = ("python", "-m", "tuna_jax.train")


def launch(fake, *arguments, states, codes=(), command=TRAIN, workdir="/shared/run"):
    (fake / "states").write_text("".join(f"{state}\n" for state in states))
    (fake / "codes").write_text("".join(f"{code}\n" for code in codes))
    own = ["--name=run", "--accelerator_type=v5litepod-16", "--zone=z", "--poll=0"]
    words = [sys.executable, str(ROOT / "launchers" / "tpu_vm.py"), *own, *arguments]
    return subprocess.run(
        [*words, *(["--", *command, f"--workdir={workdir}"] if command else [])],
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "PATH": f"{fake / 'bin'}:{os.environ['PATH']}",
            "FAKE": str(fake),
            "TMPDIR": str(fake),
            "FOLLOW_PAUSE": "0.3",
            "HF_TOKEN": "hf_notToBeSeen",
        },
    )


CLONE = ("--repository=https://example.com/x.git", "--revision=main")
QUEUED = ["", " install", " start", " follow"]
WORK = [f"queued-resources ssh{step}" for step in QUEUED]


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


@pytest.mark.parametrize("code", [143, 1, 0])
def test_restarts_after_preemption_with_any_exit_code(fake, code):
    states = ["ACTIVE", "SUSPENDED", "SUSPENDED", "PROVISIONING", "ACTIVE", "ACTIVE"]
    result = launch(fake, *CLONE, states=states, codes=[code, 0])
    assert result.returncode == 0, result.stderr
    again = ["queued-resources delete", "queued-resources create"]
    assert calls(fake) == [*WORK, *again, *WORK]
    scripts = (fake / "scripts").read_text()
    half = len(scripts) // 2
    assert scripts[:half] == scripts[half:] != "", "the same command resumes"


def test_a_lost_connection_does_not_restart_the_run(fake):
    states = ["READY"] * 8
    result = launch(fake, *CLONE, "--direct", states=states, codes=[255, 0])
    assert result.returncode == 0, result.stderr
    assert calls(fake) == [f"tpu-vm ssh{step}" for step in [*QUEUED, " follow"]]


def test_a_connection_that_is_lost_with_its_slice(fake):
    states = ["ACTIVE", *["SUSPENDED"] * 3, "PROVISIONING", "ACTIVE", "ACTIVE"]
    result = launch(fake, *CLONE, states=states, codes=[255, 0])
    assert result.returncode == 0, result.stderr
    assert calls(fake) == [*WORK, "queued-resources delete", "queued-resources create", *WORK]


def test_an_error_of_training_is_not_retried(fake):
    result = launch(fake, *CLONE, states=["ACTIVE", "ACTIVE"], codes=[1])
    assert result.returncode == 1
    assert calls(fake) == WORK


def test_a_run_that_stood_still_is_started_again(fake):
    result = launch(fake, *CLONE, states=["ACTIVE"] * 4, codes=[75, 0])
    assert result.returncode == 0, result.stderr
    assert calls(fake) == [*WORK, *WORK]


def test_the_number_of_restarts_is_limited(fake):
    result = launch(fake, *CLONE, "--retries=1", states=["ACTIVE", "FAILED"] * 2, codes=[143, 143])
    assert result.returncode == 143 and "after 1 retries" in result.stderr


def test_restarts_after_progress_are_not_counted(fake):
    """The newest checkpoint is looked up in the bucket."""
    listing = "gs://bucket/run/checkpoints/{}/\n"
    newer = (
        '[ ! -e grow ] || { echo "gs://bucket/run/checkpoints/0000$(wc -l < calls)/" > listing; }\n'
    )
    tool = fake / "bin" / "gcloud"
    tool.write_text(GCLOUD.replace("next() {", f"{newer}next() {{"))
    (fake / "listing").write_text(listing.format("00000001"))
    states, codes = ["ACTIVE", "FAILED"] * 4, [143, 143, 143, 143]
    arguments = (*CLONE, "--retries=1")
    result = launch(fake, *arguments, states=states, codes=codes, workdir="gs://bucket/run")
    assert result.returncode == 143 and calls(fake).count(WORK[-1]) == 2
    (fake / "calls").unlink()
    (fake / "grow").touch()
    states, codes = ["ACTIVE", "FAILED"] * 3 + ["ACTIVE", "ACTIVE"], [143, 143, 143, 0]
    result = launch(fake, *arguments, states=states, codes=codes, workdir="gs://bucket/run")
    assert result.returncode == 0, result.stdout + result.stderr
    assert calls(fake).count(WORK[-1]) == 4


def test_slices_are_one_resource_with_a_node_each(fake):
    states = ["NOT_FOUND", "ACTIVE", "ACTIVE", "ACTIVE"]
    slices = ("--slices=2", "--internal_ips", "--iap")
    result = launch(fake, *CLONE, *slices, states=states, codes=[0])
    assert result.returncode == 0, result.stderr
    words = (fake / "words").read_text().split("compute tpus ")
    (create,) = [line for line in words if "queued-resources create" in line]
    assert "--node-count=2 --node-prefix=run" in create and "--internal-ips" in create
    assert "--node-id" not in create
    for line in words:
        if line.startswith("queued-resources ssh"):
            assert "--worker=all --node=all --batch-size=all --tunnel-through-iap" in line


def test_the_log_is_followed_and_the_slices_are_deleted_without_a_training_command(fake):
    assert launch(fake, "--logs", states=[], codes=[0], command=()).returncode == 0
    assert launch(fake, "--delete", states=[], command=()).returncode == 0
    assert calls(fake) == [WORK[-1], "queued-resources delete"]


def test_an_error_of_gcloud_is_reported(fake):
    result = launch(fake, *CLONE, states=["DENIED"])
    assert result.returncode == 2 and "PERMISSION_DENIED" in result.stderr


CHECKSUM = "cat requirements.txt pyproject.toml constraints.txt | cksum"


@pytest.fixture
def hosts(fake):
    """The homes of two hosts of a slice, where the requirements are installed already."""
    done = subprocess.run(CHECKSUM, shell=True, cwd=ROOT, capture_output=True, text=True)
    homes = [fake / "home-w-0", fake / "home-w-1"]
    for home in homes:
        ready = home / "tuna_jax" / ".venv" / "ready"
        ready.parent.mkdir(parents=True)
        ready.write_text(done.stdout)
        (home / ".tuna_jax").mkdir()
    return homes


def test_hosts_run_the_clone_and_one_run_at_a_time(fake, hosts):
    """Executes the scripts of hosts in folders that serve as their homes."""
    # An earlier run with this name saves on SIGTERM, and the new one waits for it.
    save = "trap 'sleep 0.2; echo saved > former; exit 0' TERM; while :; do sleep 0.01; done"
    former = subprocess.Popen(["bash", "-c", save, "tuna_jax"], cwd=fake)
    (hosts[0] / ".tuna_jax" / "run.pid").write_text(f"{former.pid}\n")
    program = "test -f tuna_jax/train.py && cat ../../former && echo $TUNA_JAX_COORDINATOR $1 # checkpoints"
    # A child process remains until it is waited for, which init does on a host.
    waiter = threading.Thread(target=former.wait)
    waiter.start()
    result = launch(fake, states=["ACTIVE", "ACTIVE"], command=("sh", "-c", program, "sh"))
    if result.returncode:
        former.kill()  # It was not asked to save.
    waiter.join()
    assert result.returncode == 0, result.stdout + result.stderr
    # The log of the first host only.
    assert result.stdout.endswith("saved\nauto --workdir=/shared/run\n")
    assert result.stdout.count("auto --workdir") == 1
    assert (hosts[1] / ".tuna_jax" / "run.log").read_text().startswith("saved\nauto")
    assert (hosts[0] / "tuna_jax" / ".venv" / "ready").exists(), "the environment is kept"


def _commands(fake, *arguments, command):
    """The scripts of hosts, without sending the code."""
    tpu_vm, tpu_vm_commands = load("tpu_vm"), load("tpu_vm_commands")
    own = ["--name=run", "--accelerator_type=v5p-16", "--zone=z", *arguments]
    options = tpu_vm._parser().parse_args(own)
    return tpu_vm_commands.Commands(options, [*command, "--workdir=/shared/run"])


def _variables(fake):
    path = f"{fake / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "FAKE": str(fake), "FOLLOW_PAUSE": "0.3"}


def _on_hosts(fake, words):
    environment = _variables(fake)
    return subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment)


def test_a_run_outlives_the_connection_and_its_exit_code_is_found_later(fake, hosts):
    program = "echo step 1; until [ -e ../../go ]; do sleep 0.01; done; echo step 2; exit 3"
    commands = _commands(fake, command=("sh", "-c", program, "sh"))
    started = subprocess.Popen(commands.start(), env=_variables(fake), start_new_session=True)
    assert started.wait(timeout=60) == 0
    with contextlib.suppress(ProcessLookupError):  # A lost connection takes all of its processes.
        os.killpg(started.pid, signal.SIGKILL)
    log = hosts[0] / ".tuna_jax" / "run.log"
    assert not (hosts[0] / ".tuna_jax" / "run.code").exists()
    (fake / "go").touch()
    followed = _on_hosts(fake, commands.follow())
    assert followed.returncode == 3 and "step 1\nstep 2\n" in followed.stdout
    assert "home-w-1: exit code 3" in followed.stdout and log.read_text() == "step 1\nstep 2\n"
    # A host that was restarted has a log and no exit code.
    for home in hosts:
        (home / ".tuna_jax" / "run.code").unlink()
    assert _on_hosts(fake, commands.follow()).returncode == 143


def test_hosts_learn_their_slice_from_their_metadata(fake, hosts):
    program = "echo $MEGASCALE_SLICE_ID of $MEGASCALE_NUM_SLICES at $MEGASCALE_COORDINATOR_ADDRESS"
    commands = _commands(fake, "--slices=2", command=("sh", "-c", program, "sh"))
    for number, home in enumerate(hosts):
        (fake / f"metadata-{home.name}").write_text(
            "ACCELERATOR_TYPE: 'v5p-16'\nMEGASCALE_NUM_SLICES: '2'\n"
            f"MEGASCALE_SLICE_ID: '{number}'\nMEGASCALE_COORDINATOR_ADDRESS: '10.0.0.2:8080'\n"
        )
    assert _on_hosts(fake, commands.start()).returncode == 0
    assert _on_hosts(fake, commands.follow()).returncode == 0
    logs = [(home / ".tuna_jax" / "run.log").read_text() for home in hosts]
    assert logs == [f"{number} of 2 at 10.0.0.2:8080\n" for number in range(2)]


def test_slices_that_are_not_connected_do_not_train_separately(fake, hosts):
    commands = _commands(fake, "--slices=2", command=("sh", "-c", "echo trained", "sh"))
    (fake / "metadata-home-w-0").write_text("ACCELERATOR_TYPE: 'v5p-16'\n")
    _on_hosts(fake, commands.start())
    result = _on_hosts(fake, commands.follow())
    assert result.returncode == 2 and "--slices=2" in result.stdout
    assert "trained" not in result.stdout


SUDO = """\
#!/bin/sh
echo "$*" >> "$FAKE/sudo"
case "$*" in
  *apt-get*)
    if [ "$(wc -l < "$FAKE/sudo")" -le "$TIMES" ]; then echo "E: $PROBLEM" >&2; exit 100; fi ;;
esac
"""


@pytest.mark.parametrize(
    ("problem", "times", "code", "tries"),
    [
        ("Could not get lock /var/lib/apt/lists/lock", 3, 0, 4),
        ("Could not get lock /var/lib/dpkg/lock-frontend", 100, 1, 60),
        ("Unable to locate package python3.11", 3, 1, 1),
    ],
)
def test_the_lock_of_apt_is_waited_for(fake, problem, times, code, tries):
    apt = load("tpu_vm_commands")._APT
    (fake / "bin" / "sudo").write_text(SUDO)
    (fake / "bin" / "sudo").chmod(0o755)
    path = f"{fake / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "FAKE": str(fake), "APT_PAUSE": "0"}
    environment |= {"PROBLEM": problem, "TIMES": str(times)}
    line = ["sh", "-c", f"{apt}\napt_get update"]
    result = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == code, result.stderr
    assert len((fake / "sudo").read_text().splitlines()) == tries
    assert code == 0 or problem in result.stderr
