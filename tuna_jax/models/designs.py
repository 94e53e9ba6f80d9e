"""The designs: what turns latents, or patches of pixels, into visual tokens (`TunaConfig.design`).

A design has parts, which are modules of `Tuna` under their names here, and a function from latents to tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from tuna_jax.config import TunaConfig
from tuna_jax.models.dinov3 import DINOv3Encoder
from tuna_jax.models.layers import Linear, RMSNorm, xavier_init
from tuna_jax.models.logical_sharding import constrain
from tuna_jax.models.representation import Connector, RepresentationEncoder

Latents = Float[Array, "b t h w c"]


class Inputs(NamedTuple):
    """What visual tokens are made of, a slot per row.

    Attributes:
      latents: noisy or clean latents.
      generates: whether a slot is generated: for all rows, or by row.
      images: patches of the slots' clean pixels (`TunaConfig.image_patches`), for designs that see pixels; None if all
        slots are generated.
    """

    latents: Latents
    generates: bool | Bool[Array, " b"]
    images: Latents | None


class Design(NamedTuple):
    """A design.

    Attributes:
      parts: `(config, rngs) -> {name: module}`.
      tokens: `(model, inputs) -> tokens [b, t h w, d]`, frame-major, then row, then column; the model has the parts as
        attributes, and `remat` and `unroll`.
    """

    parts: Callable[[TunaConfig, nnx.Rngs], dict[str, nnx.Module]]
    tokens: Callable[[Any, Inputs], Float[Array, "b n d"]]


ENCODERS = {"siglip": RepresentationEncoder, "dinov3": DINOv3Encoder}
"""The representation encoders, by `RepresentationConfig.kind`."""


def _encoder(config: TunaConfig, channels: int, rngs: nnx.Rngs) -> nnx.Module:
    encoder = ENCODERS[config.representation.kind]
    return encoder(config.representation, channels, config.attention_backend, rngs=rngs)


class PatchEmbedding(nnx.Module):
    """`RMSNorm(Linear(latents))` at every position: on pixels, a convolution with the patch as kernel and stride
    (model.md section 13)."""

    def __init__(self, channels: int, width: int, eps: float, *, rngs: nnx.Rngs):
        self.patch = Linear(channels, width, init=xavier_init, rngs=rngs)
        self.norm = RMSNorm(width, eps)

    def __call__(self, latents: Latents) -> Float[Array, "b n d"]:
        return constrain(self.norm(self.patch(_flat(latents))), "batch", "tokens", "width")


def _flat(latents: Latents) -> Float[Array, "b n c"]:
    batch, time, height, width, channels = latents.shape
    x = latents.reshape(batch, time * height * width, channels)
    return constrain(x, "batch", "tokens", "channels")


# ---- cascade: TUNA and Tuna-R (model.md sections 3, 4 and 12) -----------------------------------


def _cascade_parts(config: TunaConfig, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
    return {
        "representation": _encoder(config, config.space.latent_channels, rngs),
        "connector": Connector(config.representation.width, config.language.width, rngs=rngs),
    }


def _cascade(model: Any, inputs: Inputs) -> Float[Array, "b n d"]:
    """The representation encoder on (noisy) latents or pixels, then the connector."""
    return model.connector(model.representation(inputs.latents, model.remat, model.unroll))


# ---- latent_only: Tuna-2 (model.md section 13) --------------------------------------------------


def _latent_only_parts(config: TunaConfig, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
    channels, width = config.space.latent_channels, config.language.width
    return {"embedding": PatchEmbedding(channels, width, config.patch_norm_eps, rngs=rngs)}


def _latent_only(model: Any, inputs: Inputs) -> Float[Array, "b n d"]:
    """One linear layer and a norm."""
    return model.embedding(inputs.latents)


# ---- late_fusion: Show-o2 (arXiv 2506.15564, `modeling_showo2_qwen2_5.py`) ----------------------


def _late_fusion_parts(config: TunaConfig, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
    channels, width = config.space.latent_channels, config.language.width
    both = config.representation.width + width
    return {
        "representation": _encoder(config, channels, rngs),
        "projection": Linear(channels, width, init=xavier_init, rngs=rngs),
        "fusion": Connector(both, width, rngs=rngs),
    }


def _late_fusion(model: Any, inputs: Inputs) -> Float[Array, "b n d"]:
    """Semantic layers on latents and a plain projection of them, concatenated in this order; then RMSNorm, linear
    layer, GELU, linear layer."""
    semantic = model.representation(inputs.latents, model.remat, model.unroll)
    plain = model.projection(_flat(inputs.latents))
    return model.fusion(jnp.concatenate([semantic, plain], axis=-1))


# ---- decoupled, and its encoder by itself -------------------------------------------------------


def _decoupled_parts(config: TunaConfig, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
    return _semantic_only_parts(config, rngs) | _latent_only_parts(config, rngs)


def _decoupled(model: Any, inputs: Inputs) -> Float[Array, "b n d"]:
    """An image that is given is seen by the encoder on its clean pixels; one that is generated is embedded latents."""
    if inputs.generates is True:
        return _latent_only(model, inputs)
    seen = _see(model, inputs)
    if inputs.generates is False:
        return seen
    return jnp.where(inputs.generates[:, None, None], _latent_only(model, inputs), seen)


def _semantic_only_parts(config: TunaConfig, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
    return {
        "representation": _encoder(config, config.image_patches.latent_channels, rngs),
        "connector": Connector(config.representation.width, config.language.width, rngs=rngs),
    }


def _see(model: Any, inputs: Inputs) -> Float[Array, "b n d"]:
    """The encoder on clean pixels, then the connector."""
    if inputs.images is None:
        raise ValueError(
            "this design sees the clean pixels of images (TunaConfig.design 'decoupled' or 'semantic_only'), and only "
            "latents are given; it cannot be trained on precomputed latents, and 'semantic_only' cannot generate"
        )
    return model.connector(model.representation(inputs.images, model.remat, model.unroll))


DESIGNS = {
    "cascade": Design(_cascade_parts, _cascade),
    "decoupled": Design(_decoupled_parts, _decoupled),
    "late_fusion": Design(_late_fusion_parts, _late_fusion),
    "semantic_only": Design(_semantic_only_parts, _see),
    "latent_only": Design(_latent_only_parts, _latent_only),
}
