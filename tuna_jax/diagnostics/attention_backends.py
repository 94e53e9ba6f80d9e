"""Check `attention`: every attention backend that runs on this platform gives what the dense one gives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax.diagnostics import compiling
from tuna_jax.diagnostics.context import Context
from tuna_jax.diagnostics.finding import FAIL, PASS, Finding, joined
from tuna_jax.models.attention import attention, sequence_layout

BOUNDS = {"float32": (1e-5, 1e-4), "bfloat16": (1e-2, 2e-2)}
"""Largest relative L2 errors of the outputs and of the gradients, against the dense attention in float32 at highest
precision on the same (rounded) inputs. The kernels' backward pass rounds in another order, hence the second bound."""
BACKENDS = {
    "cpu": {"splash": "float32"},
    "tpu": {"xla": "bfloat16", "splash": "bfloat16"},
    "gpu": {"xla": "bfloat16", "cudnn": "bfloat16"},
}
"""By platform: the backends, and the dtype in which they are checked. On CPU the kernel is interpreted."""
_SHAPES = {"cpu": (1, 256, 4, 2, 64)}  # Batch, tokens, heads, heads of keys, channels.
_SHAPE = (4, 1024, 16, 4, 128)


def attention_backends(context: Context) -> Finding:
    """All backends of this platform, on this process's first device."""
    del context
    platform = jax.default_backend()
    return joined(compare(backend, dtype) for backend, dtype in BACKENDS[platform].items())


def compare(backend: str, dtype: str) -> Finding:
    """One backend against the dense one: outputs and gradients under text, spans of images and padding."""
    arrays, ends = _inputs(*_SHAPES.get(jax.default_backend(), _SHAPE))
    arrays = [jnp.asarray(x, dtype) for x in arrays]
    with jax.default_matmul_precision("highest"):
        wanted = _run("xla", [x.astype(jnp.float32) for x in arrays], ends)
        found = _run(backend, arrays, ends)
    errors = [_error(mine, dense) for mine, dense in zip(found, wanted, strict=True)]
    forward, backward = errors[0], max(errors[1:])
    limits = BOUNDS[dtype]
    good = forward <= limits[0] and backward <= limits[1]  # False for NaN.
    where = " (interpreted)" if backend == "splash" and jax.default_backend() != "tpu" else ""
    return Finding(
        result=PASS if good else FAIL,
        measured=f"{backend}{where}, {dtype}: relative error {forward:.1e} (at most {limits[0]:.0e}), of gradients "
        f"{backward:.1e} (at most {limits[1]:.0e})",
        mend=""
        if good
        else f"set config.model.attention_backend to another than {backend!r} ('xla' is the dense one), and send us "
        f"the JSON file",
        numbers={backend: {"forward": forward, "gradients": backward}},
    )


def _inputs(
    batch: int, length: int, heads: int, groups: int, channels: int
) -> tuple[list[np.ndarray], Any]:
    """Query, key, value and weights of the outputs; the end of each query's interval of keys."""
    random = np.random.default_rng(0)
    counts = (heads, groups, groups, heads)
    arrays = [random.standard_normal((batch, length, n, channels)) for n in counts]
    # Two images in each row, elsewhere in each, and text.
    offsets = random.integers(1, length // 4, (batch, 1)) + np.array([[0, length // 2]])
    spans = np.stack([offsets, np.full_like(offsets, length // 5)], -1)
    layout = sequence_layout(jnp.asarray(spans, jnp.int32), length)
    return arrays, layout.visible_end


def _run(backend: str, arrays: list[jax.Array], ends: Any) -> list[np.ndarray]:
    """Outputs, and gradients of query, key and value."""

    def weighted(query: Any, key: Any, value: Any, weight: Any) -> tuple[Any, Any]:
        out = attention(query, key, value, ends, backend=backend)
        return jnp.sum(out.astype(jnp.float32) * weight.astype(jnp.float32)), out

    run = jax.value_and_grad(weighted, (0, 1, 2), has_aux=True)
    (_, out), gradients = compiling.call(run, *arrays)
    return [np.asarray(x, np.float64) for x in (out, *gradients)]


def _error(mine: np.ndarray, dense: np.ndarray) -> float:
    return float(np.linalg.norm(mine - dense) / np.linalg.norm(dense))
