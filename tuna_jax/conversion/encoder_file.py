"""The file format of a representation encoder: its parameters and what it was trained on.

A safetensors file has the parameters in float32 under their dotted names in the encoder (`patch.kernel`,
`layers.query.kernel`). Its metadata has `encoder`, JSON of the fields of `Encoder` without the parameters.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tuna_jax.config import RepresentationConfig
from tuna_jax.models.designs import ENCODERS
from tuna_jax.models.layers import Params, merge, split
from tuna_jax.utils import safetensors_files
from tuna_jax.utils.config_parsing import parse
from tuna_jax.utils.param_tree import flatten, unflatten


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A representation encoder outside of a TUNA model.

    Attributes:
      config: its sizes.
      channels: of the latents that it sees, or values of a patch of pixels.
      params: nested dict of float32 arrays, as TUNA has them under `representation`.
      latents: identifies the VAE of the latents that it was trained on; '' if unknown.
      method: how it was trained, such as 'contrastive'.
    """

    config: RepresentationConfig
    channels: int
    params: Params
    latents: str = ""
    method: str = ""

    def bind(self) -> Any:
        """The module with these parameters: latents [b, t, h, w, c] -> tokens [b, thw, d]."""
        graphdef, _ = _template(self.config, self.channels)
        return merge(graphdef, jax.tree.map(jnp.asarray, self.params))


@functools.cache
def _template(config: RepresentationConfig, channels: int) -> tuple[Any, Params]:
    """Structure and shapes of an encoder."""
    return split(nnx.eval_shape(lambda: ENCODERS[config.kind](config, channels, rngs=nnx.Rngs(0))))


def export_encoder(path: str | Path, encoder: Encoder) -> Path:
    """Writes an encoder to a safetensors file, atomically."""
    path = Path(path)
    tensors = {
        name: np.ascontiguousarray(leaf, np.float32)
        for name, leaf in flatten(encoder.params).items()
    }
    fields = {
        field.name: getattr(encoder, field.name)
        for field in dataclasses.fields(encoder)
        if field.name != "params"
    }
    fields["config"] = dataclasses.asdict(encoder.config)
    safetensors_files.write(path, tensors, {"encoder": json.dumps(fields)})
    return path


def load_encoder(path: str | Path) -> Encoder:
    """Reads a file that `export_encoder` wrote.

    Raises:
      FileNotFoundError: there is no file at `path`.
      ValueError: it is not such a file, or its tensors do not match its config (the first is named).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no encoder at {path}; experiments/ablations/encoders/ trains encoders"
        )
    tensors, metadata = safetensors_files.read(path)
    if "encoder" not in metadata:
        raise ValueError(
            f"{path} is not a representation encoder: its metadata has no 'encoder'; name a file that "
            "experiments/ablations/encoders/ wrote"
        )
    fields = json.loads(metadata["encoder"])
    config = parse(RepresentationConfig, fields.pop("config"), "encoder")
    expected = flatten(_template(config, fields["channels"])[1])
    for name in sorted(expected.keys() | tensors.keys()):
        shapes = [getattr(arrays.get(name), "shape", None) for arrays in (tensors, expected)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{path} does not match its config: {name} has shape {shapes[0]}, not {shapes[1]}"
            )
    return Encoder(config, params=unflatten(tensors), **fields)
