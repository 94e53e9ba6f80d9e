"""Two processes train, and one of them meets a fault: what is said, how both end, and that the same command resumes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tuna_jax.training import metrics
from tuna_jax.training.checkpoints import finished_checkpoints
from tuna_jax.training.watchdog import EXIT_CODE

ROOT = Path(__file__).parents[2]
ROWS = 8
STEPS = 6
PATIENCE = 600  # Seconds; the machine may be shared.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    random = np.random.default_rng(0)
    rows = []
    for row in range(ROWS):
        pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{row}.png")
        rows.append({"image": f"{row}.png", "caption": f"{row} apples"})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def train(data, workdir, fault="nothing", process=1):
    """Runs two processes, one of them with a fault; returns the exit status and the output."""
    command = [sys.executable, "launchers/local.py", "--processes=2", "--devices=1", "--grace=3"]
    command += ["--", sys.executable, "tests/training/faulty.py", fault, str(process)]
    command += ["--config=tests/training/faulty_experiment.py", f"--workdir={workdir}"]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "FAULTY_DATA": str(data), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return result.returncode, result.stdout + result.stderr


def log_of(workdir):
    lines = metrics.read(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in metrics.WALL_CLOCK} for line in lines]


FAULTS = {
    # In the order of the restarts: exit status, what the output must name, and the checkpoint that stays.
    "lasting_eio": (1, ["error:", "Input/output error", ".png"], 2),
    "death": (128 + signal.SIGKILL, ["process 1 ended with -9"], 2),
    "full_disk": (
        1,
        ["error: the checkpoint", "00000004", "File too large", "Finished checkpoints: 2."],
        2,
    ),
    "stall": (EXIT_CODE, ["process 1: no step for", "after step 3", "config.watchdog.end"], 2),
}


def test_faults_of_one_process_end_both_and_cost_a_run_nothing(data, tmp_path):
    workdir = tmp_path / "run"
    for fault, (wanted, words, kept) in FAULTS.items():
        status, output = train(data, workdir, fault)
        assert status == wanted, f"{fault}: {output}"
        for word in words:
            assert word in output, f"{fault}: {output}"
        assert [int(path.name) for path in finished_checkpoints(workdir)] == [kept], output
    stacks = (workdir / "stacks" / "1.txt").read_text()
    assert "faulty.py" in stacks, "the place where process 1 stands still"

    status, output = train(data, workdir, "transient_eio")
    assert status == 0, output
    assert "resuming from step 2" in output
    assert not (workdir / "invalid_examples.jsonl").exists()

    status, output = train(data, tmp_path / "whole")
    assert status == 0, output
    assert [line["step"] for line in log_of(workdir)] == list(range(1, STEPS + 1))
    assert log_of(workdir) == log_of(tmp_path / "whole")
