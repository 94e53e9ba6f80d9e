"""The loop with losses that are not finite, and the throughput in its log."""

import functools
import os
import shutil

import jax
import numpy as np
import pytest
from safetensors import safe_open

from tuna_jax.config import preset
from tuna_jax.parallel.mesh import make_mesh
from tuna_jax.training import compile_threads, loop, metrics, step
from tuna_jax.training.checkpoints import open_arrays
from tuna_jax.training.config import LocalSaveSettings, LoopSettings
from tuna_jax.training.nonfinite import NotFiniteError
from tuna_jax.training.optimizer import OptimizerSettings
from tuna_jax.training.throughput import NAMES
from tuna_jax.training.train_program import Program

TINY = preset("tiny")
ROWS, LENGTH = 2, 16


class Latents:
    """Batches by number; those in `bad` have an infinite latent."""

    def __init__(self, bad=()):
        self.bad, self.next = set(bad), 0

    def __iter__(self):
        return self

    def __next__(self):
        self.next += 1
        random = np.random.default_rng(self.next)
        latents = random.standard_normal((ROWS, 1, 1, 2, 2, TINY.vae.latent_channels))
        if self.next in self.bad:
            latents[0, 0, 0, 0, 0, 0] = np.inf
        tokens = random.integers(0, 90, (ROWS, LENGTH)).astype(np.int32)
        return {
            "tokens": tokens,
            "labels": np.where(np.arange(LENGTH) > 10, tokens, -100).astype(np.int32),
            "spans": np.tile(np.array([2, 5], np.int32), (ROWS, 1, 1)),
            "is_target": np.ones((ROWS, 1), bool),
            "latents": latents.astype(np.float32),
            "stream": np.zeros(ROWS, np.int32),
        }

    def get_state(self):
        return {"next": self.next}

    def set_state(self, state):
        self.next = state["next"]


@functools.cache
def settings(**changes):
    plain = OptimizerSettings(warmup=1, ema=0.0)
    return LoopSettings(steps=14, log_every=2, checkpoint_every=100, optimizer=plain, **changes)


def train(workdir, batches, shapes=(), mixture=None, **changes):
    record = {"model": TINY.to_dict(), "mixture": mixture}
    chosen = settings(**changes)
    return loop.train(
        chosen, TINY, workdir, batches, tasks=("t2i",), record=record, shapes_to_compile=shapes
    )


def test_compiling_in_threads_changes_no_step(tmp_path, capsys) -> None:
    shapes = [(next(Latents()), heads) for heads in (step.Heads(None, 0), step.NO_LIMITS)]
    logs = {}
    for threads in (0, 1):
        folder = tmp_path / str(threads)
        assert train(folder, Latents(), shapes[1 - threads :], compile_threads=threads)
        logs[threads] = [
            {name: value for name, value in line.items() if name not in metrics.WALL_CLOCK}
            for line in metrics.read(folder / "metrics.jsonl")
        ]
    assert logs[0] == logs[1] != []
    said = capsys.readouterr().err
    assert "batch shape 1 of 1" in said and "2 batch shapes in 1 threads" in said
    assert "unexpected" not in said


def test_the_number_of_threads_follows_cores_and_device(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(44)))
    assert compile_threads.number(-1, "tpu") == 4 and compile_threads.number(-1, "gpu") == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    assert compile_threads.number(-1, "cpu") == 0 and compile_threads.number(3, "gpu") == 3


def test_a_run_ends_after_skipped_updates_keeps_the_batch_and_can_resume(tmp_path) -> None:
    bad = range(5, 13)
    with pytest.raises(NotFiniteError, match=r"step 8.*config\.stop_after_skipped"):
        train(tmp_path, Latents(bad), stop_after_skipped=4)
    # The line of step 8 is fetched at step 10, and the state of step 10 is saved.
    (file_of_batch,) = (tmp_path / "post_mortem").iterdir()
    assert file_of_batch.name == "step_00000008_process_0.safetensors"
    expected = Latents(bad)
    for _ in range(8):
        batch = next(expected)
    with safe_open(file_of_batch, framework="numpy") as file:
        for name, array in batch.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)
    stopped = open_arrays(tmp_path)
    assert stopped is not None and stopped.folder.name == "00000010"
    assert int(stopped.read("skipped_in_row")) == 6

    # The state has the four finite updates, and no trace of the others.
    other = tmp_path / "four"
    with pytest.raises(NotFiniteError):
        train(other, Latents(range(5, 99)), stop_after_skipped=1)
    four = open_arrays(other)
    assert four is not None
    for path in ("params.language.embedding", "params.flow_head.final.linear.kernel"):
        np.testing.assert_array_equal(stopped.read(path), four.read(path))

    # A run with fewer skipped updates than the limit continues.
    assert train(tmp_path, Latents(bad), stop_after_skipped=9)
    assert [line["skipped_in_row"] for line in metrics.read(tmp_path / "metrics.jsonl")] == [
        *(0, 0, 2, 4, 6, 8, 0)
    ]


class Breaks(Latents):
    """Ends with an error in place of one batch, as a process that is killed."""

    def __next__(self):
        if self.next == 8:
            raise RuntimeError("broken")
        return super().__next__()


def test_a_broken_run_resumes_to_the_bit_from_a_local_save(tmp_path, caplog) -> None:
    saves = LocalSaveSettings(every=3, folder=str(tmp_path / "local"))
    run, whole = tmp_path / "run", tmp_path / "whole"
    with pytest.raises(RuntimeError, match="broken"):
        train(run, Breaks(), local_saves=saves)
    assert open_arrays(run) is None, "there is no checkpoint yet"
    (newest,) = (tmp_path / "local").rglob("00000006.safetensors")
    newest.write_bytes(newest.read_bytes()[:-100])  # Damaged: the one before is taken.
    assert train(run, Latents(), local_saves=saves)
    assert "00000006.safetensors" in caplog.text
    assert train(whole, Latents())
    assert not list((tmp_path / "local").rglob("*.safetensors")), "the run has ended"
    lines = [
        [{k: v for k, v in line.items() if k not in metrics.WALL_CLOCK} for line in log]
        for log in (metrics.read(folder / "metrics.jsonl") for folder in (run, whole))
    ]
    assert lines[0] == lines[1]
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_local_save_is_not_taken_if_the_order_of_the_data_has_changed(tmp_path, caplog) -> None:
    saves = LocalSaveSettings(every=3, folder=str(tmp_path / "local"))
    with pytest.raises(RuntimeError, match="broken"):
        train(tmp_path / "run", Breaks(), mixture={"history": [[0, {"a": 1}]]}, local_saves=saves)
    batches = Latents()
    assert train(tmp_path / "run", batches, mixture={"history": [(0, {"a": 2})]}, local_saves=saves)
    assert batches.next == 14 and "weights of their streams" in caplog.text


def test_local_saves_of_an_earlier_run_or_to_a_bad_folder_change_nothing(tmp_path, caplog) -> None:
    saves = LocalSaveSettings(every=3, folder=str(tmp_path / "local"))
    with pytest.raises(RuntimeError, match="broken"):
        train(tmp_path / "run", Breaks(), local_saves=saves)
    shutil.rmtree(tmp_path / "run")
    batches = Latents()
    assert train(tmp_path / "run", batches, local_saves=saves)
    assert batches.next == 14, "it began again"
    (tmp_path / "file").touch()
    bad = LocalSaveSettings(every=3, folder=str(tmp_path / "file" / "local"))
    assert train(tmp_path / "other", Latents(), local_saves=bad)
    assert "config.local_saves.folder" in caplog.text


def test_log_lines_have_tokens_mfu_and_goodput(tmp_path) -> None:
    peak = 1e-3  # TFLOP/s
    assert train(tmp_path, Latents(), peak_tflops=peak)
    lines = metrics.read(tmp_path / "metrics.jsonl")
    assert len(lines) == 7
    assert "goodput" in lines[-1]  # There is no step between the last two lines.
    for line in lines[:-1]:
        assert set(NAMES) <= set(line)
        assert line["tokens_per_second"] * line["step_seconds"] == pytest.approx(ROWS * LENGTH)
        assert 0 < line["goodput"] < 1
    program = Program(settings(), TINY, ("t2i",), make_mesh(devices=jax.devices()[:1]))
    flops = program.model_flops(next(Latents()), None)
    for line in lines[:-1]:
        measured = line["mfu"] * line["step_seconds"] * peak * 1e12
        assert measured == pytest.approx(flops * 1.0, rel=1e-6)
