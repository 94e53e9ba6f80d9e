"""Safetensors files come back whole, and a damaged one is named."""

from pathlib import Path

import numpy as np
import pytest

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
