"""The file with the batch of a non-finite step."""

import json

import ml_dtypes
import numpy as np
from safetensors import safe_open

from tuna_jax.training.nonfinite import keep_batch


def test_the_file_has_the_arrays_of_the_batch(tmp_path) -> None:
    random = np.random.default_rng(0)
    batch = {
        "tokens": random.integers(0, 9, (2, 5)).astype(np.int32),
        "is_target": np.array([[True], [False]]),
        "moments": random.standard_normal((2, 3)).astype(ml_dtypes.bfloat16),
        "latents": np.array([np.nan, np.inf, -0.0], np.float32)[::-1],
    }
    path = keep_batch(tmp_path, 12, batch, {"process": 3, "loss": None})
    assert path == tmp_path / "post_mortem" / "step_00000012_process_3.safetensors"
    with safe_open(path, framework="numpy") as file:
        assert file.metadata()["step"] == "12"
        assert json.loads(file.metadata()["details"]) == {"process": 3, "loss": None}
        for name, array in batch.items():
            np.testing.assert_array_equal(
                file.get_tensor(name), array.astype(file.get_tensor(name).dtype)
            )
        assert file.get_tensor("moments").dtype == np.float32
        assert file.get_tensor("is_target").dtype == np.bool_
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
