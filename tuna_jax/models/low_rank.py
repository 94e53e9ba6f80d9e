"""Low-rank adaptation (LoRA, arXiv 2106.09685): a kernel to which a trained product of two small matrices is added.

`LowRank` takes the place of a kernel in the parameters, as `cpu_fast_paths.Unstacked` does, so that the network does
not know about adapters: stacked ones are sliced by the scan over layers, and a layer's product is computed inside it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tuna_jax.models.cpu_fast_paths import matmul


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["kernel", "a", "b", "key"],
    meta_fields=["scale", "dropout"],
)
@dataclasses.dataclass(frozen=True)
class LowRank:
    """`x -> x @ kernel + scale * dropout(x) @ a @ b`. Stacked over layers, every array has a leading layer axis.

    Attributes:
      kernel: the frozen kernel [in, out].
      a: [in, rank].
      b: [rank, out].
      key: uint32, data of the random key of the dropout; None: no dropout.
      scale: factor of the product.
      dropout: share of the values of x that are 0 for the product; the others are scaled up.
    """

    kernel: Any
    a: Any
    b: Any
    key: Any = None
    scale: float = 1.0
    dropout: float = 0.0

    def product(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        """The output of the layer, without its bias, in the dtype of x."""
        # The frozen kernel has no gradient, so JAX's own product is as good as `matmul`.
        y = x @ self.kernel.astype(x.dtype)
        narrow = matmul(self._dropped(x), self.a.astype(x.dtype))
        # The scale is applied in float32, as it is when an adapter is merged.
        return y + matmul(narrow, (self.scale * self.b).astype(x.dtype))

    def _dropped(self, x: Array) -> Array:
        if self.key is None or not self.dropout:
            return x
        kept = jax.random.bernoulli(jax.random.wrap_key_data(self.key), 1 - self.dropout, x.shape)
        return jnp.where(kept, x / (1 - self.dropout), 0).astype(x.dtype)


def merged(low_rank: LowRank) -> Array:
    """`kernel + scale * a @ b`, computed in float32, in the dtype of the kernel."""
    product = jnp.matmul(
        low_rank.a.astype(jnp.float32), low_rank.b.astype(jnp.float32), precision="highest"
    )
    kernel = low_rank.kernel
    return (kernel.astype(jnp.float32) + low_rank.scale * product).astype(kernel.dtype)
