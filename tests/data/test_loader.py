"""Batches from threads and worker processes: the same batches in the same order, and errors that are passed on."""

import errno
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tuna_jax.data import loader, shared_memory
from tuna_jax.data.invalid_examples import InvalidExamples, TooManyInvalidExamples
from tuna_jax.data.media.image import Size
from tuna_jax.data.mixture.mixture import Mixture, batches
from tuna_jax.data.mixture.stream import ExampleStream
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
# Worker processes cannot import this file by its name.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Numbers:
    """Element n contains n; the indices in `errors` raise."""

    def __init__(self, errors=None):
        self.errors = errors or {}

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        if index in self.errors:
            raise self.errors[index]()
        return {"n": np.array([index]), "process": np.array([os.getpid()])}


class Awkward(Exception):
    """Cannot be read back from its pickle."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def numbers(**options):
    return loader.iterate(grain.MapDataset.source(Numbers(options.pop("errors", None))), **options)


def mixture(files, names, **options):
    """A mixture of one stream of captioned images, whose files may be missing."""
    rows = [{"image": name, "caption": f"number {i}"} for i, name in enumerate(names)]
    stream = ExampleStream(name="draw", task="t2i", source=Manifest(files.manifest("m.jsonl", rows)),
                       weight=1.0, rows=4, lengths=(32,), sizes=(Size(32, 32), Size(32, 48)))  # fmt: skip
    return Mixture([stream], Tokenizer(), directory=files.root / "cache", **options)


def test_workers_give_the_same_batches_and_resume_with_other_numbers(files) -> None:
    names = [files.image(f"{i}.png", 40, 40 + 20 * (i % 2), shade=3 * i) for i in range(20)]
    mixed = mixture(files, names)
    expected = [mixed[n] for n in range(24)]
    step = 9

    def check(iterator, begin, end):
        for n in range(begin, end):
            batch = next(iterator)
            assert batch.keys() == expected[n].keys()
            for key, array in expected[n].items():
                np.testing.assert_array_equal(batch[key], array, err_msg=f"batch {n}, {key}")

    running = loader.iterate(batches(mixed), workers=2, threads=1, ahead=3)
    check(running, 0, step)
    state = running.get_state()
    check(running, step, step + 3)
    running.close()
    assert state == {"next_index": step}
    for workers in (1, 0):
        resumed = loader.iterate(batches(mixed), workers=workers)
        resumed.set_state(state)
        check(resumed, step, 24)
        resumed.set_state({"next_index": 2})
        if not workers:
            check(resumed, 2, 5)
        resumed.close()


def test_orbax_restores_an_iterator_with_another_number_of_workers(tmp_path) -> None:
    saved = numbers(workers=0)
    for _ in range(5):
        next(saved)
    with ocp.Checkpointer(grain.checkpoint.CheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "data", args=grain.checkpoint.CheckpointSave(saved))
        saved.close()
        (kept,) = (tmp_path / "data").glob("process_*.json")
        assert json.loads(kept.read_text()) == {"next_index": 5}
        restored = numbers(workers=1)
        checkpointer.restore(tmp_path / "data", args=grain.checkpoint.CheckpointRestore(restored))
    restored_batches = [next(restored) for _ in range(4)]
    assert [int(batch["n"][0]) for batch in restored_batches] == [5, 6, 7, 8]
    assert os.getpid() not in {int(batch["process"][0]) for batch in restored_batches}
    restored.close()
    with pytest.raises(ValueError, match="closed"):
        next(restored)


def test_large_arrays_come_through_shared_memory(files, monkeypatch) -> None:
    monkeypatch.setattr(shared_memory, "SHARED_BYTES", 1024)
    mixed = mixture(files, [files.image(f"{i}.png", 40, 40, shade=3 * i) for i in range(20)])
    running = loader.iterate(batches(mixed), workers=1)
    received = [next(running) for _ in range(3)]
    running.close()
    for n, batch in enumerate(received):
        shared = {
            key for key, array in batch.items() if type(array).__name__ == "SharedMemoryArray"
        }
        assert shared == {"pixels"}
        for key, array in mixed[n].items():
            np.testing.assert_array_equal(batch[key], array)


def test_invalid_examples_that_workers_find_reach_the_main_process(files) -> None:
    names = [files.image(f"{i}.png", 40, 40) for i in range(20)]
    log = InvalidExamples(files.root / "invalid_examples.jsonl", limit=0.5, least=1000)
    mixed = mixture(files, names, invalid_examples=log)
    for i in (3, 11):
        (files.root / names[i]).unlink()  # after the scan
    counts = {}
    for workers in (0, 1):
        log = InvalidExamples(files.root / f"bad{workers}.jsonl", limit=0.5, least=1000)
        mixed = mixture(files, names, invalid_examples=log)
        running = loader.iterate(batches(mixed), workers=workers)
        received = [next(running) for _ in range(10)]  # two epochs
        assert all(set(batch) == set(mixed.shape_of(0).arrays()) for batch in received)
        running.close()
        listed = [json.loads(line) for line in log.path.read_text().splitlines()]
        assert sorted(entry["line"] for entry in listed) == [4, 12]
        counts[workers] = (log.seen, log.invalid, log.counts())
    # Each epoch meets each invalid example; batches that were only prepared ahead do not count.
    assert counts[0] == counts[1]
    assert counts[1][0] == 40 + counts[1][1]
    assert counts[1][1] >= 4
    assert counts[1][2] == {"missing_file": 2}


def test_the_limit_stops_a_run_with_workers(files) -> None:
    names = [files.image(f"{i}.png", 40, 40) for i in range(20)]
    log = InvalidExamples(files.root / "invalid_examples.jsonl", limit=0.3, least=10)
    mixed = mixture(files, names, invalid_examples=log)
    for name in names[:12]:
        (files.root / name).unlink()
    running = loader.iterate(batches(mixed), workers=1)
    with pytest.raises(
        TooManyInvalidExamples, match=r"examples read .*invalid_examples\.jsonl.*missing_file"
    ):
        for _ in range(20):
            next(running)
    running.close()
    assert 3 <= len(log.path.read_text().splitlines()) <= 12


def test_errors_are_raised_at_their_batch_with_their_message() -> None:
    full = lambda: OSError(errno.ENOSPC, "No space left on device", "/data/x")
    running = numbers(workers=1, errors={3: full})
    assert [int(next(running)["n"][0]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="'/data/x'") as raised:
        next(running)
    assert any("in __getitem__" in note for note in raised.value.__notes__)
    assert running.get_state() == {"next_index": 3}
    running.close()
    sent = pickle.loads(pickle.dumps(loader.portable(Awkward(1, 2))))
    assert type(sent) is loader.WorkerError
    assert str(sent) == "Awkward: 1 and 2"


SCRIPT = """
import os, sys, time
import grain, numpy as np
from tuna_jax.data import loader

class Source:
    def __len__(self): return 100
    def __getitem__(self, i):
        jax = sys.modules.get("jax")
        if jax:
            from tuna_jax.compat.jax_internals import backends_started
        return {"pid": np.array(os.getpid()), "platform": str(jax and jax.config.jax_platforms),
                "started": bool(jax and backends_started())}

if __name__ == "__main__":
    import jax
    iterator = loader.iterate(grain.MapDataset.source(Source()), workers=1)
    batch = next(iterator)
    print(int(batch["pid"]), batch["platform"], batch["started"], flush=True)
    if sys.argv[1] == "stay":
        time.sleep(60)
"""


def gone(pid: int) -> bool:
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("how", ["stay", "end"])
def test_a_worker_keeps_off_the_device_and_ends_with_its_run(tmp_path, how) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    run = subprocess.Popen(
        [sys.executable, tmp_path / "script.py", how],
        stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "JAX_PLATFORMS": ""},
    )  # fmt: skip
    pid, platform, started = run.stdout.readline().split()
    assert platform in ("cpu", "None"), "a worker could take the accelerator"
    assert started == "False"
    if how == "stay":
        run.kill()
    run.wait(30)
    assert gone(int(pid)), "the worker outlived its run"


def test_invalid_settings_are_named() -> None:
    with pytest.raises(ValueError, match="threads=0, ahead=8, workers=0"):
        numbers(threads=0)
    with pytest.raises(ValueError, match="workers=-1"):
        numbers(workers=-1)
