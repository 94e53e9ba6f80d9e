"""The representation encoder: SigLIP2 over (noisy) latents or pixels, and the connector (model.md sections 3, 4,
12)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from tuna_jax.config import RepresentationConfig
from tuna_jax.models.attention import attention
from tuna_jax.models.layers import LayerNorm, Linear, RMSNorm, scan_layers, stacked, xavier_init
from tuna_jax.models.logical_sharding import constrain


@functools.cache
def bicubic_matrix(source: int, target: int) -> Float[np.ndarray, "target source"]:
    """Weights that resize an axis as PyTorch's `interpolate(mode='bicubic')` does.

    Keys' kernel with a = -0.75, half-pixel centres, no anti-aliasing, edges replicated. (`jax.image.resize`'s cubic has
    a = -0.5 and anti-aliases.)
    """
    a = -0.75
    centres = (np.arange(target, dtype=np.float64) + 0.5) * source / target - 0.5
    base = np.floor(centres).astype(int)
    matrix = np.zeros((target, source))
    for tap in range(-1, 3):
        distance = np.abs(centres - (base + tap))
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
        weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
        np.add.at(matrix, (np.arange(target), np.clip(base + tap, 0, source - 1)), weights)
    return matrix.astype(np.float32)


def interpolate_positions(
    table: Float[Array, "n d"], grid: int, height: int, width: int
) -> Float[Array, "hw d"]:
    """A `grid x grid` table of learned positions resized to another grid, bicubic; the native grid is returned
    unchanged."""
    if height == width == grid:
        return table
    square = table.reshape(grid, grid, -1)
    rows = jnp.einsum("yi,ijd->yjd", bicubic_matrix(grid, height), square, precision="highest")
    both = jnp.einsum("xj,yjd->yxd", bicubic_matrix(grid, width), rows, precision="highest")
    return both.reshape(height * width, -1)


class EncoderLayer(nnx.Module):
    """Pre-LN ViT block: bidirectional attention and a tanh-GELU MLP, with biases."""

    def __init__(self, config: RepresentationConfig, backend: str, *, rngs: nnx.Rngs):
        width = config.width
        self.norm1 = LayerNorm(width, config.norm_eps)
        self.query = Linear(width, width, rngs=rngs)
        self.key = Linear(width, width, rngs=rngs)
        self.value = Linear(width, width, rngs=rngs)
        self.out = Linear(width, width, rngs=rngs)
        self.norm2 = LayerNorm(width, config.norm_eps)
        self.up = Linear(width, config.mlp, rngs=rngs)
        self.down = Linear(config.mlp, width, rngs=rngs)
        self.heads, self.backend = config.heads, backend

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        y = self.norm1(x)
        split = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        query = constrain(self.query(y).reshape(split), "batch", "tokens", "heads", None)
        key = constrain(self.key(y).reshape(split), "batch", "keys", "heads", None)
        value = constrain(self.value(y).reshape(split), "batch", "keys", "heads", None)
        seen = attention(query, key, value, backend=self.backend)
        seen = constrain(seen, "batch", "tokens", "heads", None)
        x = constrain(x + self.out(seen.reshape(x.shape)), "batch", "tokens", "width")
        hidden = constrain(self.up(self.norm2(x)), "batch", "tokens", "mlp")
        out = x + self.down(jax.nn.gelu(hidden, approximate=True))
        return constrain(out, "batch", "tokens", "width")


class RepresentationEncoder(nnx.Module):
    """Latents -> one token per latent position; frames do not attend to each other.

    Every step constrains its result's sharding: without that, on a mesh with a tensor axis, XLA's partitioner permuted
    rows in programs without a backward pass (jax 0.10.2).

    Args:
      config: sizes.
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
        self.patch = Linear(latent_channels, config.width, rngs=rngs)
        position = 0.02 * jax.random.normal(rngs.params(), (config.grid**2, config.width))
        self.position = nnx.Param(position)
        self.layers = stacked(lambda r: EncoderLayer(config, backend, rngs=r), config.layers, rngs)
        self.grid = config.grid

    def __call__(
        self, latents: Float[Array, "b t h w c"], remat: str = "none", unroll: bool = False
    ) -> Float[Array, "b thw d"]:
        """Latents -> semantic tokens, frame-major, then row, then column."""
        batch, time, height, width, channels = latents.shape
        frames = latents.reshape(batch * time, height * width, channels)
        x = self.patch(constrain(frames, "batch", "tokens", "channels"))
        positions = interpolate_positions(self.position[...], self.grid, height, width)
        x = constrain(x + positions.astype(x.dtype), "batch", "tokens", "width")
        x, _ = scan_layers(
            self.layers, lambda layer, x, _: (layer(x), None), x, None, remat, unroll
        )
        return constrain(x.reshape(batch, time * height * width, -1), "batch", "tokens", "width")


class Connector(nnx.Module):
    """RMSNorm -> Linear -> exact GELU -> Linear: semantic tokens to the language transformer's width."""

    def __init__(self, width: int, outputs: int, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(width, 1e-6)
        self.up = Linear(width, outputs, init=xavier_init, rngs=rngs)
        self.down = Linear(outputs, outputs, init=xavier_init, rngs=rngs)

    def __call__(self, x: Float[Array, "b n i"]) -> Float[Array, "b n d"]:
        hidden = constrain(self.up(self.norm(x)), "batch", "tokens", "mlp")
        return constrain(
            self.down(jax.nn.gelu(hidden, approximate=False)), "batch", "tokens", "width"
        )
