"""Safetensors files come back whole, and a damaged one is named."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tuna_jax.utils import safetensors_files


def test_a_file_comes_back_whole_and_its_folder_is_created(tmp_path: Path) -> None:
    path = tmp_path / "new" / "weights.safetensors"
    tensors = {"a.b": np.arange(6, dtype=np.float16).reshape(2, 3), "c": np.int8([1, -1])}
    safetensors_files.write(path, tensors, {"step": "3"})
    again, metadata = safetensors_files.read(path)
    assert metadata == {"step": "3"} and again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == tensor.dtype
        np.testing.assert_array_equal(again[name], tensor)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("content", "hint"),
    [(b"", "empty"), (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"), (b"x" * 99, "")],
)
def test_a_damaged_file_is_named_with_the_mend(tmp_path: Path, content: bytes, hint: str) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights\.safetensors.*{hint}"):
        safetensors_files.read(path)
    with pytest.raises(FileNotFoundError):
        safetensors_files.read(tmp_path / "nothing")


def test_a_file_is_the_librarys_to_the_byte(tmp_path):
    random = np.random.default_rng(0)
    tensors = {
        f"{letter}.{dtype}": (random.normal(size=(3, 5)) * 10).astype(dtype)
        for letter in "ba"
        for dtype in safetensors_files.DTYPES.values()
        if dtype.itemsize > 1 or dtype.kind in "iub"
    }
    tensors |= {"scalar": np.ones((), np.float32), "empty": np.zeros((0, 3), ml_dtypes.bfloat16)}
    tensors["transposed"] = random.normal(size=(3, 5)).astype(np.float32).T
    expected = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    expected["scalar"] = tensors["scalar"]
    save_file(expected, tmp_path / "expected.safetensors", metadata={"step": "7"})
    safetensors_files.write(tmp_path / "file.safetensors", tensors, {"step": "7"})
    written = (tmp_path / "file.safetensors").read_bytes()
    assert written == (tmp_path / "expected.safetensors").read_bytes()
