"""Reads golden sets: arrays computed by the released PyTorch code."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax.config import TunaConfig
from tuna_jax.conversion import weight_map
from tuna_jax.conversion.convert_checkpoint import parameter_shapes
from tuna_jax.conversion.official_config import config_from_official
from tuna_jax.utils import safetensors_files, text_files


class GoldenError(ValueError):
    """A golden set cannot be read; the message names the file and the problem."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A case of a golden set: one of its folders.

    Attributes:
      name: of the folder.
      tensors: all arrays, in PyTorch layout.
      meta: content of `meta.json`.
    """

    name: str
    tensors: Mapping[str, np.ndarray]
    meta: Mapping[str, Any]

    def role(self, name: str) -> str:
        """The role of a tensor: 'input', 'output' or 'intermediate'."""
        return self.meta["tensors"][name]["role"]

    def scalar(self, name: str) -> Any:
        """A scalar of the case."""
        return self.meta["scalars"][name]["value"]


@dataclasses.dataclass(frozen=True)
class GoldenSet:
    """A golden set with its state dict as our parameters.

    Attributes:
      folder: its folder.
      config: our config of its tiny model.
      params: parameters of TUNA.
      vae_params: parameters of the VAE; {} for Tuna-R and Tuna-2, which have none.
      info: content of `state_dict.json`.
    """

    folder: Path
    config: TunaConfig
    params: dict[str, Any]
    vae_params: dict[str, Any]
    info: Mapping[str, Any]

    def cases(self) -> Iterator[Case]:
        """All cases, sorted by name."""
        for meta in sorted(self.folder.glob("*/meta.json")):
            tensors = _read_safetensors(meta.parent / "tensors.safetensors")
            yield Case(meta.parent.name, tensors, read_json(meta))


def load(folder: str | Path) -> GoldenSet:
    """Reads a golden set.

    Raises:
      GoldenError: a file is missing or damaged.
      ConversionError: the state dict does not match its config; the message lists all tensors concerned.
    """
    folder = Path(folder)
    info = read_json(folder / "state_dict.json")
    official = info["config"]
    config = config_from_official(official, info["tied_lm_head"])
    state = dict(_read_safetensors(folder / "model.safetensors"))
    if config.vae is not None:
        vae = _read_safetensors(folder / "vae.safetensors")
        state |= {f"vae.model.{key}": tensor for key, tensor in vae.items()}
    params = weight_map.from_torch(
        config,
        parameter_shapes(config),
        {key: tensor.shape for key, tensor in state.items()},
        lambda key: state[key],
    )
    params = jax.tree.map(jnp.asarray, params)
    vae_params = params.pop("vae", {})
    return GoldenSet(folder, config, params, vae_params, info)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A value whose reference is not a tensor of the case.

    Attributes:
      ours, reference: the values to compare.
      tolerance: largest relative L2 error; None takes the tolerance of the case.
      floor: absolute error that always passes (for values that are analytically zero).
    """

    ours: Any
    reference: Any
    tolerance: float | None = None
    floor: float = 0.0


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file.

    Raises:
      GoldenError: the file does not exist, or is not JSON.
    """
    try:
        return text_files.read_json(path)
    except FileNotFoundError as error:
        raise GoldenError(f"{path} does not exist; {path.parent} is not a golden set") from error
    except ValueError as error:
        raise GoldenError(str(error)) from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return safetensors_files.read(path)[0]
    except FileNotFoundError as error:
        raise GoldenError(f"{path} does not exist") from error
    except ValueError as error:
        raise GoldenError(str(error)) from error
