"""The language transformer: Qwen2.5 under omni attention (model.md section 6)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from tuna_jax.config import LanguageConfig, TunaConfig
from tuna_jax.models.attention import KVCache, KVCaches, Layout, attend, empty_cache
from tuna_jax.models.layers import Linear, RMSNorm, SwiGLU, scan_layers, stacked
from tuna_jax.models.logical_sharding import constrain
from tuna_jax.models.rope import Rotation, inverse_frequencies, rotate, text_rotation


class LanguageLayer(nnx.Module):
    """RMSNorm -> attention (QKV biases, GQA, RoPE) -> RMSNorm -> SwiGLU, each with a residual."""

    def __init__(self, config: LanguageConfig, backend: str, *, rngs: nnx.Rngs):
        width, head_dim = config.width, config.head_dim
        self.norm1 = RMSNorm(width, config.norm_eps)
        self.query = Linear(width, config.heads * head_dim, rngs=rngs)
        self.key = Linear(width, config.kv_heads * head_dim, rngs=rngs)
        self.value = Linear(width, config.kv_heads * head_dim, rngs=rngs)
        self.out = Linear(config.heads * head_dim, width, bias=False, rngs=rngs)
        self.norm2 = RMSNorm(width, config.norm_eps)
        self.mlp = SwiGLU(width, config.mlp, rngs=rngs)
        self.head_dim, self.backend = head_dim, backend

    def __call__(
        self,
        x: Float[Array, "b s d"],
        rotation: Rotation,
        layout: Layout,
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "b s d"], KVCache | None]:
        y = self.norm1(x)
        split = (*x.shape[:2], -1, self.head_dim)
        query = rotate(self.query(y).reshape(split), rotation)
        key = rotate(self.key(y).reshape(split), rotation)
        value = self.value(y).reshape(split)
        seen, cache = attend(query, key, value, layout, cache, self.backend)
        x = constrain(x + self.out(seen.reshape(*x.shape[:2], -1)), "batch", "sequence", "width")
        return constrain(x + self.mlp(self.norm2(x)), "batch", "sequence", "width"), cache


class LanguageModel(nnx.Module):
    """Token table, layers, final norm and the text head (the table itself when tied)."""

    def __init__(self, config: TunaConfig, *, rngs: nnx.Rngs):
        sizes = config.language
        table = 0.02 * jax.random.normal(rngs.params(), (sizes.vocabulary, sizes.width))
        self.embedding = nnx.Param(table)
        self.layers = stacked(
            lambda r: LanguageLayer(sizes, config.attention_backend, rngs=r), sizes.layers, rngs
        )
        self.norm = RMSNorm(sizes.width, sizes.norm_eps)
        self.head = (
            None if sizes.tied else Linear(sizes.width, sizes.vocabulary, bias=False, rngs=rngs)
        )
        self.frequencies = tuple(inverse_frequencies(sizes.head_dim, sizes.rope_base).tolist())
        self.remat, self.unroll = config.remat, config.unroll

    def embed(self, tokens: Int[Array, "b s"], dtype: jnp.dtype) -> Float[Array, "b s d"]:
        """Token ids -> embeddings in the compute dtype."""
        # The table is split by its width. Every device of a group looks up its part of the rows of the whole group's
        # tokens, and then the parts are exchanged: in a single step XLA would replicate everything.
        x = jnp.take(self.embedding[...], constrain(tokens, "group", "sequence"), axis=0)
        x = constrain(x, "group", "sequence", "table_width").astype(dtype)
        return constrain(x, "batch", "sequence", "width")

    def __call__(
        self, x: Float[Array, "b s d"], layout: Layout, cache: KVCaches | None = None
    ) -> tuple[Float[Array, "b s d"], KVCaches | None]:
        """Embeddings -> final hidden states (after the last norm), and the cache with the new keys and values."""
        rotation = text_rotation(layout.position, jnp.asarray(self.frequencies, jnp.float32))
        x, cache = scan_layers(
            self.layers,
            lambda layer, x, layer_cache: layer(x, rotation, layout, layer_cache),
            x,
            cache,
            self.remat if cache is None else "none",
            self.unroll,
        )
        return constrain(self.norm(x), "batch", "sequence", "width"), cache

    def text_head(self) -> TextHead:
        """The parameters of `scores`: the token table when tied."""
        if self.head is None:
            return TextHead(table=self.embedding[...])
        return TextHead(kernel=self.head.kernel[...])

    def logits(self, hidden: Float[Array, "b s d"]) -> Float[Array, "b s v"]:
        """Hidden states -> float32 logits."""
        return scores(self.text_head(), hidden)


class TextHead(NamedTuple):
    """The token table or a separate kernel; the other is None."""

    table: Float[Array, "v d"] | None = None
    kernel: Float[Array, "d v"] | None = None


def scores(head: TextHead, hidden: Float[Array, "b s d"]) -> Float[Array, "b s v"]:
    """Hidden states -> float32 logits."""
    kernel = head.kernel if head.table is None else head.table.T
    assert kernel is not None
    product = jnp.matmul(hidden, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return constrain(product, "batch", "sequence", "vocabulary")


def new_cache(config: TunaConfig, batch: int, capacity: int) -> KVCaches:
    """An empty cache of `capacity` positions in the compute dtype."""
    sizes = config.language
    return empty_cache(
        sizes.layers, batch, capacity, sizes.kv_heads, sizes.head_dim, config.compute_dtype
    )
