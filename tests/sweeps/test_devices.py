"""A sweep over eight devices, killed twice, has the table of one device."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tuna_jax import evaluate
from tuna_jax.emoji.evaluation import write_questions
from tuna_jax.sweeps import results
from tuna_jax.sweeps.cell_store import Cell

ROOT = Path(__file__).parents[2]
FILE = """
from ml_collections import ConfigDict

def get_config(arg=""):
    return ConfigDict({
        "name": "try", "batch": 8, "saved_items": 16, "settings": {"guidance": (1.0, 2.0)},
        "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
        "tasks": {"edit": {"count": 12}, "name": {"kind": "answer", "question": "name", "count": 20},
            "choose": {"kind": "questions", "file": "QUESTIONS", "style": "multiple_choice", "count": 9}}})
"""
ITEMS = 2 * 12 + 20 + 9

WHOLE = ("--sweep.mesh.data=1", "--sweep.mesh.fsdp=1", "--sweep.mesh.tensor=1")


def start(folder, output):
    """The sweep in a process with eight devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "NPROC": "64", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tuna_jax.evaluate", f"--sweep={folder / 'sweep.py'}"]
    command += [f"--workdir={folder / 'run'}", f"--output={output}"]
    log = (folder / f"{output.name}.log").open("a")
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def item_count(output):
    return sum(len(path.read_text().splitlines()) for path in output.glob("cells/*/items.jsonl"))


@pytest.mark.slow
def test_eight_devices_and_two_kills_give_the_table_of_one_device(tmp_path, tiny_run):
    (tmp_path / "sweep.py").write_text(FILE.replace("QUESTIONS", str(tmp_path / "pictures.jsonl")))
    write_questions.write(tmp_path, 12)
    tiny_run.save(tmp_path / "run", tiny_run.experiment(tmp_path), (10,))
    eight, single = tmp_path / "eight", tmp_path / "single"
    for items in (8, 30):
        process = start(tmp_path, eight)
        end = time.monotonic() + 300
        while item_count(eight) < items:
            assert process.poll() is None, (tmp_path / "eight.log").read_text()[-3000:]
            assert time.monotonic() < end, "no progress"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert item_count(eight) < ITEMS, "it was killed too late"
    before = item_count(eight)
    assert start(tmp_path, eight).wait(timeout=300) == 0
    flags = [f"--sweep={tmp_path / 'sweep.py'}", f"--workdir={tmp_path / 'run'}"]
    assert evaluate.main([*flags, f"--output={single}", "--sweep.batch=5", *WHOLE]) == 0
    assert before >= 30 and item_count(eight) == item_count(single) == ITEMS, (
        "no item was run twice"
    )
    tables = [results.read(folder / results.FILE) for folder in (eight, single)]
    assert len(tables[0]) == len(tables[1]) == 6
    for a, b in zip(*tables, strict=True):
        assert results.identity(a) == results.identity(b) and a["key"] == b["key"]
        left, right = (Cell(folder / "cells" / a["key"]) for folder in (eight, single))
        if a["task"] in ("name", "choose"):
            assert a["scores"] == b["scores"] and left.records() == right.records()
            continue
        for metric, score in a["scores"].items():
            scale = 100 if metric.endswith("_db") else 1
            assert abs(score["value"] - b["scores"][metric]["value"]) <= 1e-4 * scale, metric
        for item, picture in left.pictures().items():
            difference = np.abs(picture.astype(int) - right.pictures()[item])
            assert difference.max() <= 1 and difference.mean() / 255 <= 1e-4, "uint8 rounds"
