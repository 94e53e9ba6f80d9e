"""The other side of a comparison: somebody's PyTorch implementation, named by a path, kept outside this repository.

A peer is a Python file with `build` and any of the other functions; what it lacks is not measured. Arrays are NumPy's,
channels last; token ids are lists. Each function returns when it is done. It runs in a process of its own.

    build(config: dict, weights: str | None) -> model
        `TunaConfig.to_dict()`, and a safetensors file under the released code's names (without a VAE).
    sample(model, request: dict) -> latents [B, T, h, w, C]
        `positive`, `negative`: rows of ids up to and including <boi>; `noise` [B, T, h, w, C]; `guidance`; `points` and
        `shift` of the grid; `steps`: how many of its steps to take; `length`: tokens to pad to. An edit has `source`
        [B, T, h, w, C] too, the clean picture that stands at offset 2.
    train_step(model, batch: dict) -> loss
        `tokens`, `labels`, `spans` [B, 1, 2], `latents` [B, 1, T, h, w, C]: forward, backward, clipping, AdamW.
    decode(model, request: dict) -> ids [B, new], or of the first row alone
        `tokens`: rows of ids, equally long; `new`: how many to add, greedily.
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


class Peer:
    """A peer's module with its model built, in a process of its own that lives as long as this one.

    Args:
      path: of the Python file.
      config, params: ours; the peer gets the same sizes and weights.

    Attributes:
      name: the file's, without its suffix.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it has no `build`.
    """

    def __init__(self, path: str, config: TunaConfig, params: Params):
        if not Path(path).is_file():
            raise FileNotFoundError(f"no peer at {path}; --peer names a Python file, see --help")
        self.name = Path(path).stem
        self._process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        with tempfile.TemporaryDirectory(prefix="tuna_jax-peer-") as folder:
            weights = Path(folder) / "model.safetensors"
            save_file(_released(config, params), weights)
            self._ask(baseline_worker.start, path, config.to_dict(), str(weights))

    def has(self, function: str) -> bool:
        """Whether the peer can do it."""
        return self._ask(baseline_worker.has, function)

    def call(self, function: str, argument: Any) -> Any:
        """`function(model, argument)` of the peer's."""
        return self._ask(baseline_worker.call, function, argument).result

    def watched(self, function: str, argument: Any) -> baseline_worker.Told:
        """The same, with the bytes that its process held at most meanwhile."""
        return self._ask(baseline_worker.call, function, argument, True)

    def processor(self) -> float:
        """Seconds that its process has spent on all cores."""
        return self._ask(baseline_worker.processor)

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._process.submit(function, *arguments).result()


def load(path: str, config: TunaConfig, params: Params, function: str) -> Peer | None:
    """The peer at `path`; None: there is no path, or the peer lacks `function`."""
    if not path:
        return None
    peer = Peer(path, config, params)
    return peer if peer.has(function) else None


def difference(ours: Any, theirs: Any) -> float:
    """Relative L2."""
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
