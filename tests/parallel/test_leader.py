"""Two processes: one leads, the other computes along; and both export what they hold together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tuna_jax.parallel import leader

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What both processes of two_processes.py saw."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "launchers/local.py", "--processes=2", "--devices=2", "--"]
    command += [sys.executable, "-m", "two_processes", str(folder)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return [json.loads((folder / f"{process}.json").read_text()) for process in range(2)]


def test_all_processes_compute_what_process_0_calls(results):
    first = results[0]["returned"]
    assert first["sum"] == np.arange(8).sum() + 8 + 3_000_000
    assert first["scaled"] == 2 * (np.arange(8).sum() + 8)
    assert first["other"] == np.arange(8).sum() + 16
    assert results[1]["returned"] == first


def test_a_failure_on_any_process_fails_the_call_alone(results):
    first = results[0]["returned"]
    kind, text = first["fail_on_1"]
    assert kind == "ProcessError" and "process 1" in text and "no sum on 1" in text
    assert first["fail_on_-1"] == ["ValueError", "no sum on -1"]
    assert first["late_on_0"] == ["ValueError", "late on 0"]
    assert first["late_on_1"] == ["ProcessError", "process 1: ValueError: late on 1"]
    assert first["after"] == np.arange(8).sum() + 8


def test_the_others_drop_what_process_0_has_dropped(results):
    # Process 0 holds its objects by reference, so only the other's table counts.
    assert results[0]["returned"]["held"] == [0, 1]
    assert results[0]["returned"]["held_later"] == [0, 1]


def test_a_command_that_fails_ends_on_all(results):
    assert results[0]["broken"] == ["RuntimeError", "the command failed"]
    kind, text = results[1]["broken"]
    assert kind == "ProcessError" and "process 0" in text and "the command failed" in text


def test_objects_that_all_have_made_are_adopted(results):
    assert results[0]["adopted"] == [3, 4]


def test_exports_are_whole_in_one_file_or_in_one_per_process(results):
    index, parts = (
        "model.safetensors.index.json",
        [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)],
    )
    for exports in (result["exports"] for result in results):
        assert exports["equal_one"] and exports["files_one"] == ["model.safetensors"]
        for name in ("two", "full", "slow"):
            assert exports[f"equal_{name}"]
            assert exports[f"files_{name}"] == sorted([*parts, index])


def test_a_full_disk_fails_the_export_everywhere_and_the_rest_is_written_later(results):
    full = [result["exports"] for result in results]
    assert "another process" in full[0]["full"] and "No space left" in full[1]["full"]
    assert full[0]["files_when_full"] == ["model-00001-of-00002.safetensors"]
    assert full[0]["written_again"] == ["model-00002-of-00002.safetensors"]


def test_the_newest_local_save_that_all_have_is_restored_if_it_fits(results):
    for number, saves in enumerate(result["local_saves"] for result in results):
        assert saves["files"] == [
            f"process-{process}-of-2/0000000{step}.safetensors"
            for process in (0, 1)
            for step in (2, 3)
        ]
        # The newest is not on both, and what is newer than the restored one goes.
        assert saves["both"] == [2, 20, {"step": 2}, True, [2]]
        assert saves["other_mesh"] == [None, []], number
        assert saves["checkpoint_is_newer"] == [None, []]


def test_processes_that_differ_are_named_on_all(results):
    for same, data, code in (result["agreement"] for result in results):
        assert same == ""
        assert "process 1" in data and "data: hash (of 1; process 0: of 0)" in data
        assert "code: flow.py (0; process 0: " in code and "configuration" not in code


def test_the_host_that_waits_longest_for_data_is_known(results):
    assert results[0]["slowest"] == [2.0, 1]


def test_a_single_process_just_calls():
    @leader.on_all_processes
    def double(x):
        return 2 * x

    assert leader.together(lambda: double(3)) == 6
    assert not leader.is_leading()
    assert leader.adopt("anything") == "anything"
