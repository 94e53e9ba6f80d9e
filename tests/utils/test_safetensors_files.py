"""Whole safetensors files are those of the library."""

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from tuna_jax.utils import safetensors_files


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
