"""The baseline of a comparison: another implementation, such as the released PyTorch code, in a file outside this
repository.

A baseline is a Python file with `build` and any of the other functions; functions that it lacks are not measured.
Arrays are NumPy arrays, channels last; token ids are lists. Each function returns when it is done. It runs in a
separate process.

    build(config: dict, weights: str | None) -> model
        `TunaConfig.to_dict()`, and a safetensors file with the released code's names (without a VAE).
    sample(model, request: dict) -> latents [B, T, h, w, C]
        `positive`, `negative`: rows of ids up to and including <boi>; `noise` [B, T, h, w, C]; `guidance`; `points` and
        `shift` of the time grid; `steps`: the number of its steps to take; `length`: tokens to pad to. An edit also has
        `source` [B, T, h, w, C], the clean image at offset 2.
    train_step(model, batch: dict) -> loss
        `tokens`, `labels`, `spans` [B, 1, 2], `latents` [B, 1, T, h, w, C]: forward, backward, clipping, AdamW.
    decode(model, request: dict) -> ids [B, new], or only those of the first row
        `tokens`: rows of ids of equal length; `new`: the number of tokens to add, greedily.
    encode(model, pixels uint8 [B, F, H, W, 3]), decode_latents(model, latents [B, T, h, w, C])
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tuna_jax.config import TunaConfig
from tuna_jax.conversion import weight_map
from tuna_jax.models.layers import Params
from tuna_jax.perf import baseline_worker
from tuna_jax.utils.param_tree import flatten


class Baseline:
    """A baseline's module with its model, in a separate process that lives as long as this one.

    Args:
      path: of the Python file.
      config, params: of our model; the baseline gets the same sizes and weights.

    Attributes:
      name: of the file, without its suffix.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file has no `build`.
    """

    def __init__(self, path: str, config: TunaConfig, params: Params):
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"there is no file {path}; --baseline names a Python file, see --help"
            )
        self.name = Path(path).stem
        self._process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        with tempfile.TemporaryDirectory(prefix="tuna_jax-baseline-") as folder:
            weights = Path(folder) / "model.safetensors"
            save_file(_released(config, params), weights)
            self._run(baseline_worker.start, path, config.to_dict(), str(weights))

    def has(self, function: str) -> bool:
        """Whether the baseline has this function."""
        return self._run(baseline_worker.has, function)

    def call(self, function: str, argument: Any) -> Any:
        """The result of the baseline's `function(model, argument)`."""
        return self._run(baseline_worker.call, function, argument).result

    def measured(self, function: str, argument: Any) -> baseline_worker.Result:
        """The same, with the peak memory of its process."""
        return self._run(baseline_worker.call, function, argument, True)

    def processor(self) -> float:
        """Seconds that its process has spent on all cores so far."""
        return self._run(baseline_worker.processor)

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._process.submit(function, *arguments).result()


def load(path: str, config: TunaConfig, params: Params, function: str) -> Baseline | None:
    """The baseline at `path`; None: the path is empty, or the baseline lacks `function`."""
    if not path:
        return None
    baseline = Baseline(path, config, params)
    return baseline if baseline.has(function) else None


def difference(ours: Any, theirs: Any) -> float:
    """The relative L2 distance."""
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def _released(config: TunaConfig, params: Params) -> dict[str, np.ndarray]:
    """Parameters under the released code's names, without a VAE."""
    flat = flatten(params)
    state = {}
    for row in weight_map.rows(config):
        if row.torch.startswith(weight_map.VAE_PREFIX):
            continue
        leaf = np.asarray(flat[row.path])
        for index, key in enumerate(row.names()):
            part = leaf if row.layers is None else leaf[index]
            state[key] = np.ascontiguousarray(row.transform.to_torch(part))
    return state
