"""A pretrained backbone: its kind, checked against a model's, and its patch embedding on pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tuna_jax.config import TunaConfig
from tuna_jax.conversion.readers import SourceError, StateDict

VISION = ("siglip", "dinov3")
_NAMES = {"siglip": "SigLIP", "dinov3": "DINOv3"}
# Prefixes of a vision encoder's patch embedding, and of its layers; what normalised the pixels in its training, if the
# backbone does not declare it (mean and standard deviation of red, green and blue from 0 to 1).
PATCH = {
    "siglip": "vision_model.embeddings.patch_embedding",
    "dinov3": "embeddings.patch_embeddings",
}
LAYERS = {"siglip": "vision_model.encoder.layers", "dinov3": "layer"}
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
_NORMALISATION: dict[str, Normalisation] = {
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "dinov3": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A pretrained backbone.

    Attributes:
      path: its file or folder.
      layout: 'qwen', 'siglip', 'dinov3', 'wan' or 'diffusers'.
      state: its tensors.
      declared: its `config.json`, or {}.
      preprocessor: a vision encoder's `preprocessor_config.json`, or {}.
    """

    path: str
    layout: str
    state: StateDict
    declared: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocessor: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def check_kind(config: TunaConfig, backbone: Backbone, state: StateDict) -> None:
    """Raises SourceError if the model has no part of the backbone's kind: most of its tensors would be reported."""
    layout, path = backbone.layout, backbone.path
    if layout in VISION:
        kind = config.representation.kind
        if not config.has_encoder:
            raise SourceError(
                f"{path} is a vision encoder, and a model of the design {config.design!r} has none; leave it out, or "
                f"take a config with design='cascade'"
            )
        if layout != kind:
            raise SourceError(
                f"{path} is a {_NAMES[layout]}, and this config's encoder is a {_NAMES[kind]}; take one with "
                f"representation.kind={layout!r}"
            )
    elif layout in ("wan", "diffusers"):
        if config.vae is None:
            raise SourceError(f"{path} is a VAE, and this model works on pixels; leave it out")
        first = ("encoder.downsamples.0.residual.0.gamma", "encoder.down_blocks.0.norm1.gamma")
        residual = not any(key in state.entries for key in first)
        if residual != config.vae.residual:
            raise SourceError(
                f"{path} is a VAE of Wan {'2.2' if residual else '2.1'}, and this config's is of Wan "
                f"{'2.2' if config.vae.residual else '2.1'}; take one with vae.residual={residual}"
            )


def _normalisation(backbone: Backbone) -> Normalisation:
    """Mean and standard deviation, of pixels from 0 to 1, with which a vision encoder expects them to be normalised.

    Raises:
      SourceError: `preprocessor_config.json` declares something else than three numbers each, or no positive deviation.
    """
    values, default = backbone.preprocessor, _NORMALISATION[backbone.layout]
    if values.get("do_normalize") is False:
        return (0.0,) * 3, (1.0,) * 3
    found = []
    for name, usual in zip(("image_mean", "image_std"), default, strict=True):
        value = values.get(name)
        value = usual if value is None else value
        numbers = isinstance(value, list | tuple) and len(value) == 3
        if not numbers or not all(type(v) in (int, float) for v in value):
            raise SourceError(
                f"{backbone.path}: {name} in preprocessor_config.json is {value!r}; it must be three numbers"
            )
        found.append(tuple(float(v) for v in value))
    if min(found[1]) <= 0:
        raise SourceError(
            f"{backbone.path}: image_std in preprocessor_config.json is {list(found[1])}; it must be greater than 0"
        )
    return found[0], found[1]


def for_our_pixels(
    backbone: Backbone, notes: dict[str, list[str]]
) -> Mapping[str, Callable[[Any], np.ndarray]]:
    """Changes of the patch embedding that make it take pixels in [-1, 1] instead of the backbone's normalised ones.

    `W (x' - mean) / std + b` with `x' = (x + 1) / 2` is again linear in x: each colour's weights are divided by
    `2 std`, and the bias gets the sum of the weights times `(1/2 - mean) / std`. Float32, or float64 for the sum.
    """
    mean, std = (np.asarray(values) for values in _normalisation(backbone))
    if np.all(mean == 0.5) and np.all(std == 0.5):
        return {}
    weight, bias = f"{PATCH[backbone.layout]}.weight", f"{PATCH[backbone.layout]}.bias"

    def scaled(tensor: np.ndarray) -> np.ndarray:
        scale = (1 / (2 * std))[:, None, None]
        return (tensor.astype(np.float64) * scale).astype(tensor.dtype)

    def shifted(tensor: np.ndarray) -> np.ndarray:
        by_colour = backbone.state.read(weight).astype(np.float64).sum((2, 3))
        return (tensor.astype(np.float64) + by_colour @ ((0.5 - mean) / std)).astype(tensor.dtype)

    origin = "declared" if backbone.preprocessor.get("image_mean") else "usual"
    notes["adapted"].append(
        f"{weight}, {bias}: for pixels in [-1, 1] instead of the {origin} mean {mean.tolist()} and standard deviation "
        f"{std.tolist()}"
    )
    return {weight: scaled, bias: shifted}
