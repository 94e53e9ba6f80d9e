"""The flow head: a transformer on the LLM's hidden states that ends in velocities, or in clean patches of pixels
(model.md sections 7 and 12)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tuna_jax.config import FlowHeadConfig, TunaConfig
from tuna_jax.models.attention import KVCache, KVCaches, Layout, attend, empty_cache
from tuna_jax.models.layers import (
    Linear,
    RMSNorm,
    SwiGLU,
    scan_layers,
    stacked,
    xavier_init,
    zeros_init,
)
from tuna_jax.models.logical_sharding import constrain
from tuna_jax.models.rope import Rotation, flow_head_rotation, rotate


class TimeEmbedding(nnx.Module):
    """`MLP(sinusoid(t))`: cosines first, then sines, of t itself in [0, 1]; float32."""

    def __init__(self, frequencies: int, width: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        self.up = Linear(frequencies, width, init=init, rngs=rngs)
        self.down = Linear(width, width, init=init, rngs=rngs)
        self.frequencies = frequencies

    def __call__(self, t: Float[Array, "*b"]) -> Float[Array, "*b d"]:
        half = self.frequencies // 2
        rates = jnp.exp(-jnp.log(1e4) * jnp.arange(half, dtype=jnp.float32) / half)
        angles = t.astype(jnp.float32)[..., None] * rates
        return self.down(
            jax.nn.silu(self.up(jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)))
        )


class Modulation(nnx.Module):
    """`Linear(SiLU(time embedding))` of every span on its tokens: `chunks` vectors of the model's width, initially
    zero."""

    def __init__(self, width: int, chunks: int, *, rngs: nnx.Rngs):
        self.linear = Linear(width, chunks * width, init=zeros_init, rngs=rngs)
        self.chunks = chunks

    def __call__(
        self, time: Float[Array, "#b n d"], one_hot: Float[Array, "b s n"]
    ) -> list[Float[Array, "b s d"]]:
        """Every chunk on every token, float32; text gets 0."""
        vectors = self.linear(jax.nn.silu(time.astype(jnp.float32)))
        return [_on_tokens(one_hot, chunk) for chunk in jnp.split(vectors, self.chunks, axis=-1)]


# Up to this number of slots, the vectors on tokens are a sum of products, which XLA fuses into their uses.
_SLOTS_ADDED = 4


def _on_tokens(
    one_hot: Float[Array, "b s n"], vectors: Float[Array, "#b n d"]
) -> Float[Array, "b s d"]:
    """The vector of its slot on each token, 0 on text.

    It takes one chunk at a time: one array of all six, float32 on every token, would be written to memory and read
    again in the forward and the backward pass (5 % of a training step of `tuna_1p5b` on v5e, by the compiler's
    estimate).
    """
    slots = vectors.shape[1]
    if slots <= _SLOTS_ADDED:
        on_tokens = one_hot[:, :, :1] * vectors[:, :1]
        for slot in range(1, slots):
            on_tokens = on_tokens + one_hot[:, :, slot : slot + 1] * vectors[:, slot : slot + 1]
    else:
        # One-hot times vectors at full precision is an exact copy, and its gradient is a matrix product.
        on_tokens = jnp.matmul(one_hot, vectors, precision="highest")
    return constrain(on_tokens, "batch", "sequence", "width")


def modulate(
    x: Float[Array, "b s d"], shift: Float[Array, "b s d"], scale: Float[Array, "b s d"]
) -> Float[Array, "b s d"]:
    """`x (1 + scale) + shift` in float32, returned in the dtype of x."""
    return (x.astype(jnp.float32) * (1.0 + scale) + shift).astype(x.dtype)


def gated(
    residual: Float[Array, "b s d"],
    gate: Float[Array, "b s d"],
    is_text: Float[Array, "b s 1"],
    x: Float[Array, "b s d"],
) -> Float[Array, "b s d"]:
    """`residual + gate x`, with gate 1 on text."""
    return residual + ((gate + is_text) * x.astype(jnp.float32)).astype(x.dtype)


class FlowLayer(nnx.Module):
    """AdaLN block: modulated attention (RMSNorm on q and k per head, no biases) and modulated SwiGLU, gated."""

    def __init__(self, config: FlowHeadConfig, width: int, backend: str, *, rngs: nnx.Rngs):
        head_dim = config.head_dim
        self.norm1 = RMSNorm(width, config.norm_eps)
        self.query = Linear(width, config.heads * head_dim, bias=False, init=xavier_init, rngs=rngs)
        self.key = Linear(
            width, config.kv_heads * head_dim, bias=False, init=xavier_init, rngs=rngs
        )
        self.value = Linear(
            width, config.kv_heads * head_dim, bias=False, init=xavier_init, rngs=rngs
        )
        self.out = Linear(config.heads * head_dim, width, bias=False, init=xavier_init, rngs=rngs)
        self.query_norm = RMSNorm(head_dim, 1e-6)
        self.key_norm = RMSNorm(head_dim, 1e-6)
        self.norm2 = RMSNorm(width, config.norm_eps)
        self.mlp = SwiGLU(width, config.mlp, rngs=rngs)
        self.modulation = Modulation(width, 6, rngs=rngs)
        self.head_dim, self.backend = head_dim, backend

    def __call__(
        self,
        x: Float[Array, "b s d"],
        time: Float[Array, "#b n d"],
        rotation: Rotation,
        layout: Layout,
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "b s d"], KVCache | None]:
        one_hot = layout.one_hot(time.shape[1])
        is_text = 1.0 - one_hot.sum(-1, keepdims=True)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time, one_hot)
        y = modulate(self.norm1(x), shift1, scale1)
        split = (*x.shape[:2], -1, self.head_dim)
        query = rotate(self.query_norm(self.query(y).reshape(split)), rotation)
        key = rotate(self.key_norm(self.key(y).reshape(split)), rotation)
        value = self.value(y).reshape(split)
        seen, cache = attend(query, key, value, layout, cache, self.backend)
        x = gated(x, gate1, is_text, self.out(seen.reshape(*x.shape[:2], -1)))
        y = modulate(self.norm2(constrain(x, "batch", "sequence", "width")), shift2, scale2)
        x = gated(x, gate2, is_text, self.mlp(y))
        return constrain(x, "batch", "sequence", "width"), cache


class FinalLayer(nnx.Module):
    """RMSNorm -> modulate -> Linear to latent channels; modulation and linear start at zero (AdaLN-Zero)."""

    def __init__(self, width: int, channels: int, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(width, 1e-6)
        self.modulation = Modulation(width, 2, rngs=rngs)
        self.linear = Linear(width, channels, init=zeros_init, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b s d"], time: Float[Array, "#b n d"], layout: Layout
    ) -> Float[Array, "b s c"]:
        shift, scale = self.modulation(time, layout.one_hot(time.shape[1]))
        prediction = self.linear(modulate(self.norm(x), shift, scale)).astype(jnp.float32)
        return constrain(prediction, "batch", "sequence", "channels")


class FlowHead(nnx.Module):
    """Modulated layers and the final layer, over the whole sequence under the same omni mask."""

    def __init__(self, config: TunaConfig, *, rngs: nnx.Rngs):
        sizes, width = config.flow_head, config.language.width
        self.layers = stacked(
            lambda r: FlowLayer(sizes, width, config.attention_backend, rngs=r), sizes.layers, rngs
        )
        self.final = FinalLayer(width, config.space.latent_channels, rngs=rngs)
        self.config = sizes
        self.remat, self.unroll = config.remat, config.unroll

    def __call__(
        self,
        hidden: Float[Array, "b s d"],
        time: Float[Array, "#b n d"],
        layout: Layout,
        grid: tuple[int, int],
        cache: KVCaches | None = None,
    ) -> tuple[Float[Array, "b s c"], KVCaches | None]:
        """Hidden states -> a prediction at every token (meaningful only at image tokens), float32.

        Args:
          hidden: hidden states of the language transformer, after its last norm.
          time: time embeddings, one per visual slot; a single row is used for all rows.
          layout: positions of the tokens.
          grid: latent height and width of the slots.
          cache: keys and values of the tokens before, or None.
        """
        rotation = flow_head_rotation(layout, self.config, *grid)
        hidden = constrain(hidden, "batch", "sequence", "width")
        x, cache = scan_layers(
            self.layers,
            lambda layer, x, layer_cache: layer(x, time, rotation, layout, layer_cache),
            hidden,
            cache,
            self.remat if cache is None else "none",
            self.unroll,
        )
        return self.final(x, time, layout), cache


def new_cache(config: TunaConfig, batch: int, capacity: int) -> KVCaches:
    """An empty cache of `capacity` positions in the compute dtype."""
    sizes = config.flow_head
    return empty_cache(
        sizes.layers, batch, capacity, sizes.kv_heads, sizes.head_dim, config.compute_dtype
    )
