"""Memory of attention, forward and backward, by backend and number of tokens: the compiler's estimate for one chip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from tuna_jax.config import ATTENTION_BACKENDS
from tuna_jax.hardware.chips import GIB
from tuna_jax.models.attention import attention
from tuna_jax.models.logical_sharding import use_sharding
from tuna_jax.parallel.activation_sharding import Activations
from tuna_jax.parallel.mesh import MeshSettings, make_mesh
from tuna_jax.planning import compiler

# 'auto' chooses one of the others, and 'cudnn' is for GPUs.
BACKENDS = tuple(name for name in ATTENTION_BACKENDS if name not in ("auto", "cudnn"))
LENGTHS = (2_048, 8_192, 32_768)
HEADS, KV_HEADS, HEAD_DIM = 12, 2, 128  # Of the 1.5B's language transformer.


def measure(
    device: Any,
    lengths: Sequence[int] = LENGTHS,
    backends: Sequence[str] = BACKENDS,
    log: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """One row for each length and backend: `fits`, and bytes of `peak` and `temporaries`.

    Args:
      device: of a topology; it runs the attention of one row of a batch.
      lengths: numbers of tokens.
      backends: those of `config.ATTENTION_BACKENDS` for TPUs.
      log: receives a line of progress per row.
    """
    rows = []
    for length in lengths:
        for backend in backends:
            compiled = compiler.compile_lowered(_lowered(device, length, backend))
            rows.append(
                {
                    "tokens": length,
                    "backend": backend,
                    "fits": compiled.fits,
                    "peak": compiled.peak,
                    "temporaries": compiled.temporaries,
                    "usable": compiled.capacity,
                }
            )
            log(f"{backend}, {length:,} tokens: {'fits' if compiled.fits else 'does not fit'}")
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| tokens | backend | fits | memory at its peak, GiB |", "|---|---|---|---|"]
    for row in rows:
        peak = f"{row['peak'] / GIB:.3g}"
        fits = "yes" if row["fits"] else f"no, there are {row['usable'] / GIB:.4g} GiB"
        lines.append(f"| {row['tokens']:,} | {row['backend']} | {fits} | {peak} |")
    return "\n".join(lines)


def _lowered(device: Any, length: int, backend: str) -> Any:
    mesh = make_mesh(MeshSettings(), [device])
    replicated = NamedSharding(mesh, PartitionSpec())

    def shape(heads: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(
            (1, length, heads, HEAD_DIM), jnp.bfloat16, sharding=replicated
        )  # fmt: skip

    def loss(query: jax.Array, key: jax.Array, value: jax.Array, end: jax.Array) -> jax.Array:
        with use_sharding(
            Activations(mesh)
        ):  # Tells kernels the platform that they are compiled for.
            return attention(query, key, value, end, backend=backend).astype(jnp.float32).sum()

    end = jax.ShapeDtypeStruct((1, length), jnp.int32, sharding=replicated)
    step = jax.jit(jax.grad(loss, (0, 1, 2)), out_shardings=replicated)
    return step.lower(shape(HEADS), shape(KV_HEADS), shape(KV_HEADS), end)
