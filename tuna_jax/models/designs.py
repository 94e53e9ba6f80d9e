"""The designs: what turns latents, or patches of pixels, into visual tokens (`TunaConfig.design`).

A design has parts, which are modules of `Tuna` under their names here, and a function from latents to tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx
from jaxtyping import Array, Float

from tuna_jax.config import TunaConfig
from tuna_jax.models.dinov3 import DINOv3Encoder
from tuna_jax.models.layers import Linear, RMSNorm, xavier_init
from tuna_jax.models.logical_sharding import constrain
from tuna_jax.models.representation import Connector, RepresentationEncoder

Latents = Float[Array, "b t h w c"]


class Design(NamedTuple):
    """A design.

    Attributes:
      parts: `(config, rngs) -> {name: module}`.
      tokens: `(model, latents) -> tokens [b, t h w, d]`, frame-major, then row, then column; the model has the parts as
        attributes, and `remat` and `unroll`.
    """

    parts: Callable[[TunaConfig, nnx.Rngs], dict[str, nnx.Module]]
    tokens: Callable[[Any, Latents], Float[Array, "b n d"]]


ENCODERS = {"siglip": RepresentationEncoder, "dinov3": DINOv3Encoder}
"""The representation encoders, by `RepresentationConfig.kind`."""


def _cascade_parts(config: TunaConfig, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
    width, encoder = config.language.width, ENCODERS[config.representation.kind]
    return {
        "representation": encoder(
            config.representation, config.space.latent_channels, config.attention_backend, rngs=rngs
        ),
        "connector": Connector(config.representation.width, width, rngs=rngs),
    }


def _cascade(model: Any, latents: Latents) -> Float[Array, "b n d"]:
    """TUNA and Tuna-R: the representation encoder on (noisy) latents or pixels, then the connector (model.md sections
    3, 4 and 12)."""
    return model.connector(model.representation(latents, model.remat, model.unroll))


class PatchEmbedding(nnx.Module):
    """`RMSNorm(Linear(latents))` at every position: on pixels, a convolution with the patch as kernel and stride
    (model.md section 13)."""

    def __init__(self, channels: int, width: int, eps: float, *, rngs: nnx.Rngs):
        self.patch = Linear(channels, width, init=xavier_init, rngs=rngs)
        self.norm = RMSNorm(width, eps)

    def __call__(self, latents: Latents) -> Float[Array, "b n d"]:
        batch, time, height, width, channels = latents.shape
        x = constrain(
            latents.reshape(batch, time * height * width, channels), "batch", "tokens", "channels"
        )
        return constrain(self.norm(self.patch(x)), "batch", "tokens", "width")


def _latent_only_parts(config: TunaConfig, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
    channels, width = config.space.latent_channels, config.language.width
    return {"embedding": PatchEmbedding(channels, width, config.patch_norm_eps, rngs=rngs)}


def _latent_only(model: Any, latents: Latents) -> Float[Array, "b n d"]:
    """Tuna-2: one linear layer and a norm."""
    return model.embedding(latents)


DESIGNS = {
    "cascade": Design(_cascade_parts, _cascade),
    "latent_only": Design(_latent_only_parts, _latent_only),
}
