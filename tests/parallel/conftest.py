"""Programs on eight simulated devices, in a separate process, since their number is fixed when JAX starts."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def on_eight_devices() -> Callable[[str], list[dict[str, Any]]]:
    """Runs Python code; returns the JSON objects that it prints, one per line."""

    def run(code: str) -> list[dict[str, Any]]:
        environment = {
            **os.environ,
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
            # Threads of XLA's pool. A collective blocks one until all of its devices have arrived: with no more threads
            # than devices, several collectives at once can block all threads, which is a deadlock.
            "NPROC": "64",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    return run
