"""The lock of a workdir."""

import subprocess
import sys

import pytest

from tuna_jax.training import workdir
from tuna_jax.training.workdir import WorkdirInUseError, locked

# A process of its own, since a lock does not exclude the process that holds it.
HOLD = (
    "import fcntl, sys\n"
    "file = open(sys.argv[1], 'a+')\n"
    "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
    "file.write('process 17 on there'); file.flush()\n"
    "print('held', flush=True)\n"
    "sys.stdin.read()"
)


def test_a_workdir_has_one_run_at_a_time_and_a_killed_run_releases_it(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    command = [sys.executable, "-c", HOLD, str(folder / ".lock")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(WorkdirInUseError, match="process 17 on there.*--workdir"), locked(folder):
        pass
    other.kill()
    other.communicate()
    with locked(folder):
        late = subprocess.run(command, input="", capture_output=True, text=True)
        assert late.returncode == 1 and "BlockingIOError" in late.stderr
    with locked(folder):
        pass


def test_in_a_mounted_bucket_the_run_that_began_later_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "renames_atomically", lambda folder: False)
    with locked(tmp_path) as check:
        check()
        with locked(tmp_path) as later:  # A lock does not exclude its own process, as in a bucket.
            later()
            with pytest.raises(WorkdirInUseError, match="taken over by process"):
                check()


def test_the_folder_is_created(tmp_path):
    with locked(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run").is_dir()
