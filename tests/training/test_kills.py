"""Repeated SIGKILL in the middle of saves: a run always resumes, and no committed checkpoint is lost."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.bucket_mount import can_mount

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("storage", ["disk", "bucket"])
def test_killed_saves_lose_nothing(tmp_path, storage):
    if storage == "bucket" and not can_mount():
        pytest.skip("requires the permission to mount file systems")
    seed = random.randrange(10**6)
    print("seed", seed)
    paths = f"{ROOT}:{ROOT / 'tests' / 'fixtures'}"
    environment = {**os.environ, "PYTHONPATH": paths, "XLA_FLAGS": "", "OMP_NUM_THREADS": "1"}
    environment["OPENBLAS_NUM_THREADS"] = (
        "1"  # Its threads start with NumPy, and threads cannot be forked.
    )
    script = ROOT / "tests" / "training" / "killed_saves.py"
    result = subprocess.run(
        [
            sys.executable,
            str(script),
            str(tmp_path / "checkpoints"),
            str(seed),
            storage,
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 0, f"seed {seed}\n{result.stdout}{result.stderr[-4000:]}"
    assert result.stdout.startswith("20 kills")
