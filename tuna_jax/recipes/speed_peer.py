"""The other side of a comparison: somebody's PyTorch implementation, named by a path, kept outside this repository.

A peer is a Python file with `build` and any of the other functions; what it lacks is not measured. Arrays are NumPy's,
channels last; token ids are lists. Each function returns when it is done.

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

import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tuna_jax.config import TunaConfig
from tuna_jax.conversion import table
from tuna_jax.models.layers import Params
from tuna_jax.trees import flatten


class Peer:
    """A peer's module with its model built.

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
        self.name = Path(path).stem
        self._module = _imported(path)
        with tempfile.TemporaryDirectory(prefix="tuna_jax-peer-") as folder:
            weights = Path(folder) / "model.safetensors"
            save_file(_released(config, params), weights)
            self._model = self._module.build(config.to_dict(), str(weights))

    def has(self, function: str) -> bool:
        """Whether the peer can do it."""
        return hasattr(self._module, function)

    def call(self, function: str, argument: Any) -> Any:
        """`function(model, argument)` of the peer's."""
        return getattr(self._module, function)(self._model, argument)


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


def _imported(path: str) -> ModuleType:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no peer at {path}; --peer names a Python file, see --help")
    name = f"tuna_jax_peer_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    if not hasattr(module, "build"):
        raise ValueError(f"the peer {path} has no function build(config, weights)")
    return module


def _released(config: TunaConfig, params: Params) -> dict[str, np.ndarray]:
    """Parameters under the released code's names, without a VAE."""
    flat = flatten(params)
    state = {}
    for row in table.rows(config):
        if row.torch.startswith(table.VAE_PREFIX):
            continue
        leaf = np.asarray(flat[row.path])
        for index, key in enumerate(row.names()):
            part = leaf if row.layers is None else leaf[index]
            state[key] = np.ascontiguousarray(row.transform.to_torch(part))
    return state
