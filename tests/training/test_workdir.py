import subprocess
import sys

import pytest

from tuna_jax.training.workdir import WorkdirInUseError, check_folder, locked

# Another process, for a lock does not keep out the process that holds it.
HOLD = (
    "import fcntl, sys\n"
    "file = open(sys.argv[1], 'a+')\n"
    "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
    "file.write('process 17 on there'); file.flush()\n"
    "print('held', flush=True)\n"
    "sys.stdin.read()"
)


def test_a_workdir_has_one_run_at_a_time_and_a_killed_one_is_no_hindrance(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    command = [sys.executable, "-c", HOLD, str(folder / ".lock")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    message = "run is in use by process 17 on there.*--workdir"
    with pytest.raises(WorkdirInUseError, match=message), locked(folder):
        pass
    other.kill()
    other.communicate()
    with locked(folder):
        late = subprocess.run(command, input="", capture_output=True, text=True)
        assert late.returncode == 1 and "BlockingIOError" in late.stderr
    with locked(folder):
        pass


def test_makes_the_folder(tmp_path):
    with locked(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run").is_dir()


def test_a_bucket_is_to_be_mounted():
    with pytest.raises(ValueError, match="--workdir=gs://bucket/run is no folder; mount"):
        check_folder("gs://bucket/run")
    check_folder("runs/x")
