"""Golden sets: arrays that the released PyTorch code computed, read from disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from tuna_jax.config import TunaConfig
from tuna_jax.conversion import weight_map
from tuna_jax.conversion.convert_checkpoint import parameter_shapes
from tuna_jax.conversion.official_config import config_from_official


class GoldenError(ValueError):
    """A golden set that cannot be read; the message names the file and what is wrong."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One folder of a golden set.

    Attributes:
      name: the folder's.
      tensors: all arrays, PyTorch layout.
      meta: `meta.json`.
    """

    name: str
    tensors: Mapping[str, np.ndarray]
    meta: Mapping[str, Any]

    def role(self, name: str) -> str:
        """'input', 'output' or 'intermediate'."""
        return self.meta["tensors"][name]["role"]

    def scalar(self, name: str) -> Any:
        """A scalar of the case."""
        return self.meta["scalars"][name]["value"]


@dataclasses.dataclass(frozen=True)
class GoldenSet:
    """A golden set with its state dict as our parameters.

    Attributes:
      folder: where it lies.
      config: our configuration of its tiny model.
      params: TUNA's parameters.
      vae_params: the VAE's.
      info: its `state_dict.json`.
    """

    folder: Path
    config: TunaConfig
    params: dict[str, Any]
    vae_params: dict[str, Any]
    info: Mapping[str, Any]

    def cases(self) -> Iterator[Case]:
        """Every case, by name."""
        for meta in sorted(self.folder.glob("*/meta.json")):
            tensors = _read_safetensors(meta.parent / "tensors.safetensors")
            yield Case(meta.parent.name, tensors, _read_json(meta))


def load(folder: str | Path) -> GoldenSet:
    """Reads a golden set.

    Raises:
      GoldenError: a missing or broken file.
      table.ConversionError: the state dict does not fit its configuration; all tensors concerned are listed.
    """
    folder = Path(folder)
    info = _read_json(folder / "state_dict.json")
    official = info["config"]
    config = config_from_official(official, info["tied_lm_head"])
    state = dict(_read_safetensors(folder / "model.safetensors"))
    autoencoder = _read_safetensors(folder / "vae.safetensors")
    state |= {f"vae.model.{key}": tensor for key, tensor in autoencoder.items()}
    params = weight_map.from_torch(
        config,
        parameter_shapes(config),
        {key: tensor.shape for key, tensor in state.items()},
        lambda key: state[key],
    )
    params = jax.tree.map(jnp.asarray, params)
    vae_params = params.pop("vae")
    return GoldenSet(folder, config, params, vae_params, info)


@dataclasses.dataclass(frozen=True)
class Against:
    """A value whose reference is not among the case's tensors.

    Attributes:
      ours, reference: what is compared.
      tolerance: relative L2; None is the case's.
      floor: absolute error that always passes (for what is analytically zero).
    """

    ours: Any
    reference: Any
    tolerance: float | None = None
    floor: float = 0.0


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise GoldenError(f"{path} does not exist; is {path.parent} a golden set?") from error
    except json.JSONDecodeError as error:
        raise GoldenError(f"{path} is not JSON: {error}") from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
    except FileNotFoundError as error:
        raise GoldenError(f"{path} does not exist") from error
    except SafetensorError as error:
        raise GoldenError(f"{path} is damaged or not a safetensors file: {error}") from error
