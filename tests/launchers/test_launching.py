"""Common code of the launchers: help, errors, names, secrets, and the supervisor that forwards SIGTERM."""

import importlib
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCHERS = ROOT / "launchers"
TRAINING = ["--", "python", "-m", "tuna_jax.train", "--config=c.py", "--workdir=gs://bucket/run"]
SHARED = [*TRAINING[:-1], "--workdir=/shared/run"]
SETUP = ["--setup", "--dry_run", "--project=p", "--cluster=c", "--bucket=b"]
COMMANDS = {
    "local.py": [],
    "tpu_vm.py": ["--name=run", "--accelerator_type=v5litepod-16", "--zone=us-west4-a"],
    "gke.py": ["--name=run", "--topology=v5e:4x4", "--image=image:1"],
    "slurm.py": ["--name=run", "--nodes=2"],
}


def load(name):
    """A module of launchers/, which is not a package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(LAUNCHERS))
        return importlib.import_module(name)


launching, supervisor = load("launching"), load("supervisor")


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
        ("gke.py", ["--", "python", "-m", "tuna_jax.train"], "--workdir"),
        ("local.py", ["--devices=0", *TRAINING], "--devices"),
        ("local.py", ["--env=A", *TRAINING], "NAME=VALUE"),
        ("gke.py", ["--name=Tuna_7B", *TRAINING], "--name=tuna-7b"),
        ("gke.py", ["--topology=v5e:4x4x4", *TRAINING], "--topology=v5e:4x4x4"),
        ("gke.py", ["--topology=v4:4x4x4", *TRAINING], "v5e, v5p, v6e, tpu7x"),
        ("gke.py", ["--secret=HF_TOKEN", *TRAINING], "VARIABLE=SECRET:KEY"),
        ("gke.py", ["--xpk", *TRAINING], "--cluster"),
        ("gke.py", ["--xpk", "--cluster=c", *TRAINING], "xpk storage attach"),
        ("gke.py", ["--xpk", "--cluster=c", *SHARED, "a\nb"], "line break"),
        ("gke.py", ["--fuse_limits=4,32Gi", *TRAINING], "CPU,MEMORY,DISK"),
        ("gke.py", ["--topology=", *TRAINING], "--topology"),
        ("gke.py", ["--slices=0", *TRAINING], "--slices=0"),
        ("gke.py", ["--slices=2", "--topology=v5e:2x4", *TRAINING], "--topology=v5e:2x4 has one"),
        ("gke.py", ["--logs", "--delete"], "--logs and --delete"),
        ("gke.py", ["--logs", *TRAINING], "--logs takes no training command"),
        (
            "gke.py",
            ["--setup", "--dry_run", "--project=p"],
            "--setup requires --cluster, such as --cluster=pods",
        ),
        ("gke.py", ["--delete", "--name="], "--delete requires --name"),
        ("gke.py", [*SETUP, "--zone=us-east5"], "--zone=us-east5 is not a zone"),
        ("gke.py", [*SETUP, "--zone=us-east5-a"], "--image=image:1 is not in Artifact Registry"),
        ("slurm.py", TRAINING, "--workdir=gs://bucket/run"),
        ("gke.py", ["--", "python", "--workdir=runs/x"], "gs://BUCKET/x"),
        ("gke.py", ["--", "python", "--output=runs/x"], "--output=runs/x"),
        ("tpu_vm.py", ["--accelerator_type=v3-8", *TRAINING], "v5litepod-N, v5p-N, v6e-N\n"),
        ("tpu_vm.py", ["--accelerator_type=tpu7x-128", *TRAINING], "gke.py --topology=tpu7x:4x4x4"),
        ("tpu_vm.py", ["--slices=2", "--direct", *TRAINING], "--slices requires a queued resource"),
        ("tpu_vm.py", ["--iap", "--direct", *TRAINING], "--iap requires a queued resource"),
        ("tpu_vm.py", ["--slices=0", *TRAINING], "--slices=0"),
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
    """One bucket is two mounts if it is both written and read."""
    words = ["x", "--workdir=gs://my-bucket.1/a", "--config.init_from=gs://my-bucket.1/b"]
    words += ["--config.data.cache=gs://caches/c", "--output", "gs://other/d", "gs://data/e"]
    replaced, mounts = launching.mounted(words)
    assert replaced == [
        *("x", "--workdir=/gcs/my-bucket.1/a", "--config.init_from=/gcs-data/my-bucket.1/b"),
        *("--config.data.cache=/gcs/caches/c", "--output", "/gcs/other/d", "/gcs-data/data/e"),
    ]
    written, read = ["caches", "my-bucket.1", "other"], ["data", "my-bucket.1"]
    assert [mount.bucket for mount in mounts if not mount.data] == written
    assert [mount.bucket for mount in mounts if mount.data] == read


def test_what_a_run_writes_is_not_cached():
    """Another host would not see it, and gcsfuse keeps names and sizes on TPU machines unless configured otherwise."""
    options = launching.Mount("b", data=False).options(30)
    assert set(options.values()) == {"0"} and "metadata-cache:ttl-secs" in options
    options = launching.Mount("b", data=True).options(30)
    assert options["metadata-cache:ttl-secs"] == "-1"
    assert options["metadata-cache:negative-ttl-secs"] == "0"
    assert options["file-cache:max-size-mb"] == "30720"
    assert options["file-cache:enable-parallel-downloads"] == "true"
    assert "file-cache:enable-parallel-downloads" not in launching.Mount("b", True).options(0)


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (["x", "--workdir", "runs/a/"], "runs/a"),
        (["x", "--workdir=gs://b/c"], "gs://b/c"),
        (["x", "--workdir=/runs/a", "--output=/pictures"], "/runs/a"),
        (["x", "--output=gs://b/pictures"], "gs://b/pictures"),
        (["x", "--output", "gs://b/c/answers.jsonl"], "gs://b/c"),
        (["x", "--output=cat.png"], "."),
    ],
)
def test_the_folder_of_a_run_is_its_workdir_or_else_its_output(words, folder):
    assert launching.workdir(words) == folder


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
    script = supervisor.supervised(["sh", "-c", program], ["export A='b c'"])
    assert _run(shell, script, stop) == code


def _run(shell, script, stop=False):
    running = subprocess.Popen([shell, "-c", script], stdout=subprocess.PIPE, text=True)
    if stop:
        assert running.stdout.readline() == "up\n"
        running.send_signal(signal.SIGTERM)
    code = running.wait(timeout=60)
    running.stdout.close()
    return code


SAVE = "mkdir -p {0}/checkpoints/{1}; "


@pytest.mark.parametrize("form", [str, supervisor.one_line])
@pytest.mark.parametrize(
    ("program", "stop", "code"),
    [
        ("exit 1", False, 1),
        (SAVE.format("$0", "00000200") + "exit 1", False, 85),
        (SAVE.format("$0", "00000200") + "kill -9 $$", False, 85),
        (SAVE.format("$0", "00000200") + "exit 75", False, 85),
        ("exit 75", False, 75),
        (SAVE.format("$0", "00000200") + "exit 2", False, 2),
        (SAVE.format("$0", "00000200") + "exit 0", False, 0),
        (SAVE.format("$0", "00000090") + "exit 1", False, 1),  # That is older.
        (SAVE.format("$0", "00000200.orbax-checkpoint-tmp") + "exit 1", False, 1),
        (
            SAVE.format("$0", "00000200") + SAVE.format("$0", "00000300.tmp") + "exit 1",
            False,
            85,
        ),
        ("trap 'exit 0' TERM; echo up; while :; do sleep 0.01; done", True, 143),
        (
            f"trap '{SAVE.format('$0', '00000200')} exit 0' TERM; echo up; while :; do sleep 0.01; done",
            True,
            85,
        ),
    ],
)
def test_an_error_after_a_new_checkpoint_is_reported_as_one(tmp_path, form, program, stop, code):
    (tmp_path / "checkpoints" / "00000100").mkdir(parents=True)
    command = ["sh", "-c", program, str(tmp_path), "it's", "do"]
    script = form(supervisor.supervised(command, progress=str(tmp_path)))
    assert _run("sh", script, stop) == code


def test_a_bucket_is_asked_for_its_newest_checkpoint_as_a_folder_is(tmp_path):
    """The line for addresses works on folders too, so it is tried on one."""
    for name in ("00000100", "00000090", "tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    function = supervisor.newest("gs://run", sys.executable)
    function = function.replace("gs://run", str(tmp_path))
    line = subprocess.run(["sh", "-c", f"{function}; newest"], capture_output=True, text=True)
    assert line.stdout == "00000100\n"
    nowhere = subprocess.run(["sh", "-c", f"{supervisor.newest('gs://x/y', 'false')}; newest"])
    assert nowhere.returncode == 0


def test_a_wrong_flag_exits_with_a_code_that_a_restart_cannot_mend(capsys):
    from tuna_jax import train
    from tuna_jax.training import watchdog

    assert watchdog.EXIT_CODE == supervisor.STALLED != supervisor.PROGRESS
    with pytest.raises(SystemExit) as end:
        train.main(["--confg=x"])
    assert end.value.code in supervisor.FINAL and "--config" in capsys.readouterr().err


def test_every_exit_code_is_in_the_documentation():
    page = (ROOT / "docs" / "pods.md").read_text()
    for code in (*supervisor.FINAL, supervisor.STALLED, supervisor.PROGRESS, supervisor.STOPPED):
        assert f"`{code}`" in page


def test_every_kind_of_tpu_is_in_the_documentation():
    page = (ROOT / "docs" / "pods.md").read_text()
    for tpu in launching.TPUS.values():
        vm = f"{tpu.prefix}N | {tpu.runtime}" if tpu.runtime else "not offered | not offered"
        assert f"| {tpu.name} | {vm} | {tpu.label} | {tpu.machine}Nt |" in page
        for flag in tpu.libtpu:
            assert f"`{flag.lstrip('-')}`" in page


@pytest.mark.parametrize("state", ["clean", "touched", "changed"])
def test_the_archive_holds_tracked_files_with_their_changes(tmp_path, state):
    launching = load("launching")
    repository = tmp_path / "clone"
    repository.mkdir()
    tracked = repository / "tracked.txt"
    tracked.write_text("committed")
    (repository / "untracked.txt").write_text("not for the pod")

    def run(*command):
        subprocess.run(command, cwd=repository, check=True, timeout=60)

    run("git", "init", "--quiet")
    run("git", "add", "tracked.txt")
    run("git", "-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "--message=first")
    if state == "touched":  # As a copy of the clone has it: a new time, the old content.
        os.utime(tracked, (1, 1))
    elif state == "changed":
        tracked.write_text("changed")
    run("sh", "-c", launching.pack(str(tmp_path / "packed.tar.gz")))
    with tarfile.open(tmp_path / "packed.tar.gz") as packed:
        assert packed.getnames() == ["tracked.txt"]
        content = packed.extractfile("tracked.txt").read()
    assert content == (b"changed" if state == "changed" else b"committed")
