"""Weights on disk: lazy reading, streamed writing, and every kind of invalid file."""

import json
import os
import pickle
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tuna_jax.conversion import safetensors_writer
from tuna_jax.conversion.readers import SourceError, merge, open_files
from tuna_jax.conversion.safetensors_writer import Writer

BF16 = np.dtype(ml_dtypes.bfloat16)
RANDOM = np.random.default_rng(0)
TENSORS = {
    "a.weight": RANDOM.normal(size=(3, 4)).astype(np.float32),
    "b.weight": RANDOM.normal(size=(2, 5, 3)).astype(BF16),
    "c.bias": RANDOM.normal(size=(7,)).astype(np.float16),
    "d.count": np.arange(5, dtype=np.int64),
}


def specs(tensors=TENSORS):
    return {key: (tensor.shape, tensor.dtype) for key, tensor in tensors.items()}


def write(path, tensors=TENSORS, **options):
    with Writer(path, specs(tensors), **options) as writer:
        for key, tensor in tensors.items():
            writer.write(key, tensor)


def assert_equal(tensors, expected=TENSORS):
    assert set(tensors) == set(expected)
    for key, tensor in expected.items():
        assert tensors[key].dtype == tensor.dtype
        assert tensors[key].tobytes() == tensor.tobytes()


def resident():
    """Resident memory of this process in bytes, including mapped files."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_reading_does_not_keep_the_file_in_memory(tmp_path):
    numbers = np.random.default_rng(1).normal(size=(16, 1 << 20)).astype(np.float32)
    write(tmp_path / "x.safetensors", {"whole": numbers})
    state = open_files(tmp_path / "x.safetensors")
    before = resident()
    for index in range(16):
        np.testing.assert_array_equal(state.read("whole", index), numbers[index])
    assert resident() - before < 24 << 20, "a row is 4 MB, the file 64 MB"


def read(path):
    state = open_files(path)
    return {key: state.read(key) for key in state.entries}


WHOLE = slice(None)


@pytest.mark.parametrize(
    "index",
    [
        (WHOLE, WHOLE, WHOLE),
        (slice(1, 3), WHOLE, WHOLE),
        (WHOLE, slice(3, 6), WHOLE),
        (slice(1, 3), WHOLE, slice(2, 5)),
        (slice(2, 3), slice(0, 4), slice(7, 8)),
        (slice(2, 2), WHOLE, WHOLE),
    ],
)
def test_a_part_of_a_tensor_is_its_slice(tmp_path, index):
    tensors = {"a": np.arange(4 * 6 * 8, dtype=np.int32).reshape(4, 6, 8), "b": np.array(3.5)}
    write(tmp_path / "one.safetensors", {"first": np.ones(5, np.int8)} | tensors)
    write(tmp_path / "shards", tensors, shard_bytes=100)
    for path in ("one.safetensors", "shards"):
        state = open_files(tmp_path / path).renamed(lambda key: f"x.{key}")
        np.testing.assert_array_equal(state.read_part("x.a", index), tensors["a"][index])
        assert state.read_part("x.b", ()) == 3.5


def bytes_read():
    """Bytes that this process has read so far."""
    with open("/proc/self/io") as file:
        return int(next(line.split()[1] for line in file if line.startswith("rchar")))


def test_only_the_bytes_of_a_part_are_read(tmp_path):
    numbers = np.random.default_rng(1).normal(size=(8, 256, 1024)).astype(np.float32)
    write(tmp_path / "x", {"a": numbers, "b": numbers[0]}, shard_bytes=numbers.nbytes)
    state = open_files(tmp_path / "x").renamed(lambda key: key)  # Of two shards.
    for index in ((WHOLE, WHOLE, slice(128, 256)), (slice(3, 4), WHOLE, WHOLE)):
        before = bytes_read()
        part = state.read_part("a", index)
        assert part.nbytes <= bytes_read() - before <= 1.02 * part.nbytes


def test_in_a_mounted_bucket_an_interrupted_conversion_is_named_and_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_writer, "renames_atomically", lambda folder: False)
    copy, copied = safetensors_writer._copy, []

    def killed(source, target):
        copied.append(target)
        if len(copied) == 2:
            raise KeyboardInterrupt
        copy(source, target)

    tensors = {"a": np.arange(40), "b": np.arange(40)}
    monkeypatch.setattr(safetensors_writer, "_copy", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "x", tensors, shard_bytes=100)
    with pytest.raises(SourceError, match="interrupted conversion"):
        open_files(tmp_path / "x")
    monkeypatch.setattr(safetensors_writer, "_copy", copy)
    write(tmp_path / "x", tensors, shard_bytes=1000)  # Of other shards.
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["model.safetensors"]
    assert open_files(tmp_path / "x").entries.keys() == tensors.keys()


def test_safetensors_reads_the_output(tmp_path):
    write(tmp_path / "all.safetensors", metadata={"format": "pt"})
    assert_equal(load_file(tmp_path / "all.safetensors"))
    assert_equal(read(tmp_path / "all.safetensors"))
    assert open_files(tmp_path / "all.safetensors").metadata == {"format": "pt"}
    assert os.listdir(tmp_path) == ["all.safetensors"]


def test_shards_have_an_index(tmp_path):
    write(tmp_path / "out", shard_bytes=100, extra={"config.json": "{}"})
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(TENSORS)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in TENSORS.values())
    assert len(set(index["weight_map"].values())) == 3
    assert_equal(read(tmp_path / "out"))
    assert_equal(read(tmp_path / "out" / "model.safetensors.index.json"))
    assert (tmp_path / "out" / "config.json").read_text() == "{}"


def test_parts_may_come_in_any_order(tmp_path):
    with Writer(tmp_path / "x.safetensors", specs({"s": TENSORS["b.weight"]})) as writer:
        for index in (1, 0):
            writer.write("s", TENSORS["b.weight"][index], index)
    state = open_files(tmp_path / "x.safetensors")
    assert state.read("s").tobytes() == TENSORS["b.weight"].tobytes()
    assert state.read("s", 1).tobytes() == TENSORS["b.weight"][1].tobytes()


def test_entries_have_shape_dtype_and_size(tmp_path):
    write(tmp_path / "x.safetensors")
    entry = open_files(tmp_path / "x.safetensors").entries["b.weight"]
    assert (entry.shape, entry.dtype, entry.nbytes) == ((2, 5, 3), BF16, 60)


@pytest.mark.parametrize("failure", ["error", "unwritten"])
def test_a_failed_write_leaves_nothing(tmp_path, failure):
    raised = pytest.raises((RuntimeError, ValueError), match=r"stopped|d\.count")
    with raised, Writer(tmp_path / "out", specs()) as writer:
        for key in list(TENSORS)[:-1]:
            writer.write(key, TENSORS[key])
        if failure == "error":
            raise RuntimeError("stopped")
    assert os.listdir(tmp_path) == []


def test_an_existing_output_is_not_overwritten(tmp_path):
    write(tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="out"):
        write(tmp_path / "out", {"other": np.zeros(3)})
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert_equal(read(tmp_path / "empty"))


def test_a_full_disk_is_an_error_before_writing(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="out.*GB"):
        write(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_during_a_write_leaves_nothing(tmp_path, monkeypatch):
    def full(file, data, position):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), Writer(tmp_path / "out", specs()) as writer:
        monkeypatch.setattr(os, "pwrite", full)
        writer.write("a.weight", TENSORS["a.weight"])
    assert os.listdir(tmp_path) == []


def test_a_tensor_of_another_dtype_is_an_error(tmp_path):
    raised = pytest.raises(ValueError, match=r"a\.weight.*float64.*float32")
    with raised, Writer(tmp_path / "out", specs()) as writer:
        writer.write("a.weight", TENSORS["a.weight"].astype(np.float64))


def test_a_truncated_file_is_an_error(tmp_path):
    save_file({"a": np.ones((100, 100))}, tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    for size in (len(data) - 1, 40, 3):
        (tmp_path / "x.safetensors").write_bytes(data[:size])
        with pytest.raises(SourceError, match=r"x\.safetensors"):
            open_files(tmp_path / "x.safetensors")


def test_all_missing_shards_are_listed(tmp_path):
    write(tmp_path / "out", shard_bytes=20)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    for shard in shards[1:3]:
        shard.unlink()
    with pytest.raises(SourceError, match=f"{shards[1].name}, {shards[2].name}"):
        open_files(tmp_path / "out")


def test_a_tensor_in_no_shard_is_an_error(tmp_path):
    write(tmp_path / "out", shard_bytes=100)
    index = tmp_path / "out" / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["gone"] = next(iter(values["weight_map"].values()))
    index.write_text(json.dumps(values))
    with pytest.raises(SourceError, match="gone"):
        open_files(tmp_path / "out")
    index.write_text("[]")
    with pytest.raises(SourceError, match=r"index\.json"):
        open_files(index)


def test_a_tensor_in_two_sources_is_an_error(tmp_path):
    write(tmp_path / "x.safetensors")
    write(tmp_path / "y.safetensors", {"a.weight": np.zeros(2, np.float32)})
    with pytest.raises(SourceError, match=r"a\.weight"):
        merge([open_files(tmp_path / "x.safetensors"), open_files(tmp_path / "y.safetensors")])


def test_missing_and_unsupported_files_are_errors(tmp_path):
    with pytest.raises(SourceError, match="nowhere"):
        open_files(tmp_path / "nowhere")
    with pytest.raises(SourceError, match=r"\.safetensors"):
        open_files(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(SourceError, match=r"notes\.txt"):
        open_files(tmp_path / "notes.txt")


class TestPickles:
    """PyTorch files, which require PyTorch."""

    torch = None

    @pytest.fixture(autouse=True)
    def _torch(self):
        self.torch = pytest.importorskip("torch")

    def state(self):
        as_torch = self.torch.from_numpy
        bits = as_torch(TENSORS["b.weight"].view(np.int16)).view(self.torch.bfloat16)
        return {
            key: bits if key == "b.weight" else as_torch(value) for key, value in TENSORS.items()
        }

    @pytest.mark.parametrize("wrapper", ["", "model", "state_dict"])
    @pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
    def test_bare_and_wrapped(self, tmp_path, wrapper, suffix):
        state = self.state()
        path = tmp_path / f"x{suffix}"
        self.torch.save({wrapper: state, "step": 3} if wrapper else state, path)
        assert_equal(read(path))

    def test_reading_twice_gives_the_same_and_keeps_little_memory(self, tmp_path):
        """Pages are released after a read; the tensors have many pages, and two share a storage."""
        numbers = np.random.default_rng(1).normal(size=(16, 1 << 20)).astype(np.float32)
        whole = self.torch.from_numpy(numbers)
        self.torch.save({"whole": whole, "part": whole[3:5]}, tmp_path / "x.pt")
        state = open_files(tmp_path / "x.pt")
        before = resident()
        for index in range(16):
            np.testing.assert_array_equal(state.read("whole", index), numbers[index])
        assert resident() - before < 24 << 20, "a row is 4 MB, the file 64 MB"
        for _ in range(2):
            np.testing.assert_array_equal(state.read("whole"), numbers)
            np.testing.assert_array_equal(state.read("part"), numbers[3:5])

    def test_other_objects_are_an_error_and_not_executed(self, tmp_path):
        ran = tmp_path / "ran"

        class Trap:
            def __reduce__(self):
                return (open, (str(ran), "w"))

        self.torch.save({"a": self.torch.zeros(2), "b": Trap()}, tmp_path / "x.pt")
        with pytest.raises(SourceError, match=r"x\.pt"):
            open_files(tmp_path / "x.pt")
        assert not ran.exists()
        (tmp_path / "y.pt").write_bytes(pickle.dumps({"a": 1}))
        with pytest.raises(SourceError, match=r"y\.pt"):
            open_files(tmp_path / "y.pt")

    def test_other_contents_are_errors(self, tmp_path):
        self.torch.save({"a": self.torch.zeros(2), "epoch": 3}, tmp_path / "x.pt")
        with pytest.raises(SourceError, match="epoch"):
            open_files(tmp_path / "x.pt")
        self.torch.save([1, 2], tmp_path / "y.pt")
        with pytest.raises(SourceError, match="list"):
            open_files(tmp_path / "y.pt")

    def test_a_truncated_file_is_an_error(self, tmp_path):
        self.torch.save(self.state(), tmp_path / "x.pt")
        data = (tmp_path / "x.pt").read_bytes()
        (tmp_path / "x.pt").write_bytes(data[: len(data) // 2])
        with pytest.raises(SourceError, match=r"x\.pt"):
            open_files(tmp_path / "x.pt")
