"""DINOv3's vision transformer (arXiv 2508.10104) as the representation encoder, over (noisy) latents or pixels.

It takes the place of SigLIP2 (`representation.py`) and is used in the same way: a fresh linear layer embeds latents (on
pixels, the convolution of the parent), the features are those of all layers except the original's last, without the
final norm, and frames of a clip do not attend to each other. What is different:

- Positions are rotary: the rows and columns of patches turn queries and keys in every layer. There is no table.
- A CLS token and register tokens come first. They take part in attention, are not rotated, and are dropped at the end.
- The outputs of attention and MLP are multiplied by learned scales before they are added (layer scale).

DINOv3's mask token is only for its own pre-training and does not exist here; stochastic depth and the random changes of
coordinates in its training are left out.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tuna_jax.config import RepresentationConfig
from tuna_jax.models.attention import attention
from tuna_jax.models.layers import LayerNorm, Linear, scan_layers, stacked
from tuna_jax.models.logical_sharding import constrain
from tuna_jax.models.rope import Rotation, patch_rotation, rotate

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}


class LayerScale(nnx.Module):
    """`x * scale` with a learned scale per feature."""

    def __init__(self, width: int, value: float):
        self.scale = nnx.Param(jnp.full((width,), value, jnp.float32))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return x * self.scale[...].astype(x.dtype)


class DINOv3Layer(nnx.Module):
    """Pre-LN ViT block: bidirectional attention with rotated patches, and an MLP, gated or not, with layer scale."""

    def __init__(self, config: RepresentationConfig, backend: str, *, rngs: nnx.Rngs):
        width, own = config.width, config.dinov3
        self.norm1 = LayerNorm(width, config.norm_eps)
        self.query = Linear(width, width, bias=own.query_bias, rngs=rngs)
        self.key = Linear(width, width, bias=own.key_bias, rngs=rngs)
        self.value = Linear(width, width, bias=own.value_bias, rngs=rngs)
        self.out = Linear(width, width, bias=own.out_bias, rngs=rngs)
        self.layer_scale1 = LayerScale(width, own.layer_scale)
        self.norm2 = LayerNorm(width, config.norm_eps)
        self.gate = Linear(width, config.mlp, bias=own.mlp_bias, rngs=rngs) if own.gated else None
        self.up = Linear(width, config.mlp, bias=own.mlp_bias, rngs=rngs)
        self.down = Linear(config.mlp, width, bias=own.mlp_bias, rngs=rngs)
        self.layer_scale2 = LayerScale(width, own.layer_scale)
        self.heads, self.backend, self.activation = config.heads, backend, own.activation

    def __call__(self, x: Float[Array, "b n d"], rotation: Rotation) -> Float[Array, "b n d"]:
        y = self.norm1(x)
        split = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        query = constrain(self.query(y).reshape(split), "batch", "tokens", "heads", None)
        key = constrain(self.key(y).reshape(split), "batch", "keys", "heads", None)
        value = constrain(self.value(y).reshape(split), "batch", "keys", "heads", None)
        query = constrain(rotate(query, rotation), "batch", "tokens", "heads", None)
        key = constrain(rotate(key, rotation), "batch", "keys", "heads", None)
        seen = attention(query, key, value, backend=self.backend)
        seen = constrain(seen, "batch", "tokens", "heads", None)
        x = x + self.layer_scale1(self.out(seen.reshape(x.shape)))
        x = constrain(x, "batch", "tokens", "width")
        return constrain(
            x + self.layer_scale2(self._mlp(self.norm2(x))), "batch", "tokens", "width"
        )

    def _mlp(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        activation, up = _ACTIVATIONS[self.activation], self.up(x)
        hidden = activation(up) if self.gate is None else activation(self.gate(x)) * up
        return self.down(constrain(hidden, "batch", "tokens", "mlp"))


class DINOv3Encoder(nnx.Module):
    """Latents -> one token per latent position; frames do not attend to each other.

    Every step constrains its result's sharding, as in `representation.RepresentationEncoder`, whose arguments it has.

    Args:
      config: sizes, and `config.dinov3`.
      latent_channels: of the VAE, or values of a patch of pixels.
      backend: of the attention, see `models/attention.attention`.
    """

    def __init__(
        self,
        config: RepresentationConfig,
        latent_channels: int,
        backend: str = "xla",
        *,
        rngs: nnx.Rngs,
    ):
        width, own = config.width, config.dinov3

        def normal(*shape: int) -> nnx.Param:
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))

        self.patch = Linear(latent_channels, width, rngs=rngs)
        self.cls = normal(width)
        self.registers = normal(own.registers, width) if own.registers else None
        self.layers = stacked(lambda r: DINOv3Layer(config, backend, rngs=r), config.layers, rngs)
        self.head_dim, self.rope_base = width // config.heads, own.rope_base

    def __call__(
        self, latents: Float[Array, "b t h w c"], remat: str = "none", unroll: bool = False
    ) -> Float[Array, "b thw d"]:
        """Latents -> semantic tokens, frame-major, then row, then column."""
        batch, time, height, width, channels = latents.shape
        frames = latents.reshape(batch * time, height * width, channels)
        x = self.patch(constrain(frames, "batch", "tokens", "channels"))
        first = [self.cls[...][None]] + ([] if self.registers is None else [self.registers[...]])
        before = jnp.concatenate(first).astype(x.dtype)
        before = jnp.broadcast_to(before, (len(x), *before.shape))
        x = constrain(jnp.concatenate([before, x], axis=1), "batch", "tokens", "width")
        count = before.shape[1]
        rotation = patch_rotation(height, width, self.head_dim, self.rope_base, count)
        x, _ = scan_layers(
            self.layers, lambda layer, x, _: (layer(x, rotation), None), x, None, remat, unroll
        )
        x = constrain(x[:, count:], "batch", "tokens", "width")
        return constrain(x.reshape(batch, time * height * width, -1), "batch", "tokens", "width")
