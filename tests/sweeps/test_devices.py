"""A sweep over eight devices of two and of four processes, killed twice, has the table of one device."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures import launched
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


def start(folder, output, processes, devices, *more):
    """Starts the sweep on this many processes, each with this many devices, in a process group of its own."""
    command = [sys.executable, "launchers/local.py"]
    command += [f"--processes={processes}", f"--devices={devices}", "--", sys.executable]
    command += ["-m", "tuna_jax.evaluate", f"--sweep={folder / 'sweep.py'}"]
    command += [f"--workdir={folder / 'run'}", f"--output={output}", *more]
    log = (folder / f"{output.name}.log").open("a")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def item_count(output):
    return sum(len(path.read_text().splitlines()) for path in output.glob("cells/*/items.jsonl"))


@pytest.mark.slow
def test_several_processes_and_two_kills_give_the_table_of_one_device(tmp_path, tiny_run):
    (tmp_path / "sweep.py").write_text(FILE.replace("QUESTIONS", str(tmp_path / "pictures.jsonl")))
    write_questions.write(tmp_path, 12)
    tiny_run.save(tmp_path / "run", tiny_run.experiment(tmp_path), (10,))
    eight, single = tmp_path / "eight", tmp_path / "single"
    for items, processes in ((8, 2), (30, 4)):
        launcher = start(tmp_path, eight, processes, 8 // processes)
        end = time.monotonic() + 600
        while item_count(eight) < items:
            assert launcher.poll() is None, (tmp_path / "eight.log").read_text()[-3000:]
            assert time.monotonic() < end, "no progress"
            time.sleep(0.005)
        launched.kill(launcher)
        assert item_count(eight) < ITEMS, "it was killed too late"
    before = item_count(eight)
    assert start(tmp_path, eight, 2, 4).wait(timeout=600) == 0
    assert start(tmp_path, single, 1, 1, "--sweep.batch=5", *WHOLE).wait(timeout=600) == 0
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
