"""Folders that mirror buckets, with a bucket on the loopback interface."""

import os
import shutil
import sys
import time

import jax.numpy as jnp
import pytest

from tests.fixtures.bucket_emulator import BUCKET, emulated
from tuna_jax.cli import parsing
from tuna_jax.sweeps.checkpoints import Hashes
from tuna_jax.training import staging
from tuna_jax.training.checkpoints import Checkpoints, finished_checkpoints, open_arrays
from tuna_jax.training.workdir import WorkdirInUseError, locked
from tuna_jax.utils import buckets


@pytest.fixture(scope="module")
def emulator():
    with emulated() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def run(emulator, request):
    return f"gs://{BUCKET}/{request.node.name.replace('[', '_').strip(']')}/run"


def stored(run):
    root = run.removeprefix("gs://")
    found = buckets.file_system().find(root)
    return {key.removeprefix(f"{root}/"): buckets.file_system().cat_file(key) for key in found}


def test_what_is_written_changed_and_removed_reaches_the_bucket(run):
    with staging.staged(run) as folder:
        assert os.path.basename(folder) == "run" and os.listdir(folder) == []
        for name, text in {"a.txt": "1", "sub/b.txt": "2", ".lock": "mine"}.items():
            os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
            with open(os.path.join(folder, name), "w") as file:
                file.write(text)
        staging.flush(folder)
        assert stored(run) == {"a.txt": b"1", "sub/b.txt": b"2"}
        with open(os.path.join(folder, "a.txt"), "a") as file:
            file.write("23")
        os.remove(os.path.join(folder, "sub/b.txt"))
    assert not os.path.exists(folder)
    assert stored(run) == {"a.txt": b"123"}
    with staging.staged(f"{run}/") as folder:
        assert os.listdir(folder) == ["a.txt"]
        assert staging.address_of(os.path.join(folder, "a.txt")) == f"{run}/a.txt"
    assert stored(run) == {"a.txt": b"123"}


def test_files_are_copied_while_a_command_runs(run, monkeypatch):
    monkeypatch.setattr(staging, "_EVERY", 0.05)
    with staging.staged(run) as folder:
        with open(os.path.join(folder, "log"), "w") as file:
            file.write("step 1")
        end = time.monotonic() + 20
        while not stored(run) and time.monotonic() < end:
            time.sleep(0.02)
        assert stored(run) == {"log": b"step 1"}


def test_what_a_command_wrote_before_it_failed_reaches_the_bucket(run):
    with pytest.raises(FloatingPointError, match="step 7"), staging.staged(run) as folder:
        staging.Path(folder, "post_mortem").mkdir()
        staging.Path(folder, "post_mortem", "step_7.json").write_text("{}")
        raise FloatingPointError("step 7")
    assert stored(run) == {"post_mortem/step_7.json": b"{}"}
    assert not os.path.exists(folder)


def test_checkpoints_are_in_the_bucket_only_and_the_log_is_there_before_them(run):
    state = {"w": jnp.arange(6.0)}
    with staging.staged(run) as folder:
        with Checkpoints(os.path.join(folder, "checkpoints"), keep=2) as saved:
            for step in (1, 2, 3):
                with open(os.path.join(folder, "metrics.jsonl"), "a") as file:
                    file.write(f"{step}\n")
                saved.save(step, {"w": state["w"] * step}, config={"step": step})
                assert stored(run)["metrics.jsonl"].endswith(f"{step}\n".encode())
        assert not os.path.exists(os.path.join(folder, "checkpoints"))
    # What a killed save leaves: it is removed by the run, and no other command takes it for a checkpoint.
    buckets.file_system().pipe_file(f"{run}/checkpoints/00000004/pending.txt", b"")
    with staging.staged(run) as folder:
        assert [path.name for path in finished_checkpoints(folder)] == ["00000002", "00000003"]
        arrays = open_arrays(folder)
        assert arrays.config == {"step": 3} and list(arrays.read("w")) == [0, 3, 6, 9, 12, 15]
        hashes = Hashes(staging.Path(folder, "hashes.json"))
        second, third = (
            hashes.of_checkpoint(staging.Path(folder, "checkpoints", f"{step:08d}"))
            for step in (2, 3)
        )
        assert second != third
        with Checkpoints(os.path.join(folder, "checkpoints")) as saved:
            assert saved.restore(state).step == 3 and saved.steps() == [2, 3]
    assert not any("00000004" in name for name in stored(run))
    with staging.staged(f"{run}/checkpoints/00000002") as path:
        assert open_arrays(path).config == {"step": 2}


def test_a_run_in_a_bucket_that_another_one_has_taken_over_ends(run):
    with staging.staged(run) as first, staging.staged(run) as second, locked(first) as check:
        check()
        with locked(second) as later:
            later()
            with pytest.raises(WorkdirInUseError, match=f"{run} was taken over by process"):
                check()


def test_what_a_killed_command_left_is_removed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(staging.tempfile, "tempdir", str(tmp_path))
    dead, living = tmp_path / "tuna_jax_bucket_999999999_x", tmp_path / "tuna_jax_bucket_1_x"
    dead.mkdir()
    living.mkdir()
    with staging.staged(run):
        assert not dead.exists() and living.exists()


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://bucket", "gs://bucket/"])
def test_other_addresses_are_an_error(address):
    with pytest.raises(ValueError, match=address), staging.staged(address):
        pass


def test_without_the_library_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ImportError, match=r"tuna_jax\[gcs\]"), staging.staged("gs://bucket/run"):
        pass


def test_a_bucket_that_fails_keeps_the_files_and_errors_name_the_address(run, monkeypatch):
    monkeypatch.setattr(staging, "_PAUSES", (0.0,))
    with (
        pytest.raises(OSError, match="keeps what the command wrote") as caught,
        staging.staged(run) as folder,
    ):
        with open(os.path.join(folder, "log"), "w") as file:
            file.write("step 1")
        monkeypatch.setattr(staging._mirrors[staging.Path(folder)]._files, "put_file", _fails)
    (kept,) = staging.Path(folder).parents[1].glob(f"kept_{staging.Path(folder).parent.name}")
    assert (kept / "run" / "log").read_text() == "step 1"
    assert str(kept) in str(caught.value)
    shutil.rmtree(kept)
    assert parsing.message_of(caught.value).startswith(f"{run} cannot be written")
    assert parsing.message_of(ValueError(f"no model in {folder}")) == f"no model in {run}"


def _fails(*arguments):
    raise RuntimeError("503")
