"""The log of a run: its file, resumption, and wall-clock entries."""

import json
import sys

import pytest

from tuna_jax.training import metrics
from tuna_jax.training.config import LoopSettings
from tuna_jax.training.metrics import MetricsLog, Stopwatch


def write(path, *lines, torn=""):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)


def test_the_log_has_null_for_nan(tmp_path):
    log = MetricsLog(tmp_path, steps=10)
    log.progress(5, loss=1.0)
    log.write(5, {"loss": 1.5, "text": float("nan")})
    log.close()
    assert metrics.read(tmp_path / "metrics.jsonl") == [{"step": 5, "loss": 1.5, "text": None}]
    assert list((tmp_path / "tensorboard").iterdir())


def test_resuming_removes_lines_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(
        path, {"step": 5, "loss": 3}, {"step": 10, "loss": 2}, {"step": 15, "loss": 1}, torn='{"ste'
    )
    log = MetricsLog(tmp_path, steps=20, start=10)
    log.write(12, {"loss": 9.0})
    log.close()
    assert [line["step"] for line in metrics.read(path)] == [5, 10, 12]


def test_in_a_mounted_bucket_files_close_with_each_checkpoint_and_the_log_is_cut(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(metrics, "renames_atomically", lambda folder: False)
    monkeypatch.setattr(metrics, "_SEGMENT", 60)
    log = MetricsLog(tmp_path, steps=10)
    for step in range(1, 9):
        log.write(step, {"loss": 0.125})
        if step % 2 == 0:
            log.sync(step)
            assert log._file is None, "what was logged is stored before the checkpoint"
    log.close()
    names = sorted(path.name for path in tmp_path.glob("metrics*"))
    assert names == ["metrics-00000005.jsonl", "metrics.jsonl"]
    path = tmp_path / "metrics.jsonl"
    assert [line["step"] for line in metrics.read(path)] == list(range(1, 9))
    assert len(list((tmp_path / "tensorboard").iterdir())) == 5

    log = MetricsLog(tmp_path, steps=10, start=4)
    log.write(5, {"loss": 0.5})
    log.close()
    assert [line["step"] for line in metrics.read(path)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("names, kept", [((), set()), (("tensorboard",), {"tensorboard"})])
def test_writers_are_chosen_by_name(tmp_path, names, kept):
    log = MetricsLog(tmp_path, steps=10, bar=False, writers=names)
    log.write(1, {"loss": 1.0})
    log.close()
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl"} | kept


def test_unknown_writers_and_missing_packages_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"config\.metric_writers.*'board'"):
        LoopSettings(steps=10, metric_writers=("tensorboard", "board"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"config\.metric_writers.*pip install wandb"):
        MetricsLog(tmp_path, steps=10, writers=("wandb",))


def test_an_incomplete_last_line_is_ignored(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, {"step": 5}, torn='{"step": 6, "lo')
    assert metrics.read(path) == [{"step": 5}]


def test_other_processes_write_nothing(tmp_path):
    log = MetricsLog(tmp_path, steps=10, enabled=False)
    log.write(1, {"loss": 1.0})
    log.progress(1, loss=1.0)
    log.say("hello")
    log.close()
    assert not list(tmp_path.iterdir())


def test_minutes_continue_from_the_interrupted_run(tmp_path):
    now = [1000.0]
    write(tmp_path / "metrics.jsonl", {"step": 5, "minutes": 2.0}, {"step": 5, "psnr_db": 20.0})
    watch = Stopwatch(tmp_path, start=5, clock=lambda: now[0])
    now[0] += 60
    assert watch.read(35) == {"steps_per_second": pytest.approx(0.5), "minutes": pytest.approx(3.0)}
    now[0] += 30
    assert watch.read(65) == {"steps_per_second": pytest.approx(1.0), "minutes": pytest.approx(3.5)}
