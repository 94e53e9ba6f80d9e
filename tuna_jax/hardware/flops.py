"""FLOPs of a traced program, counted over its jaxpr: matrix products and convolutions, times how often they run.

The compiler's own count includes the body of a scan once, so it cannot be used for stacked layers. Elementwise
operations are not counted, as is usual for MFU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core as jax_core

from tuna_jax.compat import jax_internals


def count(jaxpr: jax_core.ClosedJaxpr) -> int:
    """FLOPs of a program over all devices; a product of [m, k] and [k, n] has 2 m k n.

    Unused results are not counted. The body of a scan is counted times its length, the most expensive branch of a
    `cond` once, the body of a `shard_map` once per device, and the body of a Pallas kernel once per point of its grid:
    blocks that the kernel skips under an attention mask are counted, as they are in the dense product. The body of a
    `while` is counted once, since its number of rounds is not in the jaxpr.
    """
    return _of(jax_internals.without_dead_code(jaxpr))


def _of(jaxpr: Any) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "cond":
        return max(_of(branch.jaxpr) for branch in params["branches"])
    inner = sum(_of(body) for body in _bodies(params))
    if name == "scan":
        return inner * params["length"]
    if name == "shard_map":
        return inner * jax_internals.shard_map_devices(params)
    if name == "pallas_call":
        return inner * jax_internals.pallas_grid(params)
    return inner


def _dot(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _convolution(equation: Any) -> int:
    kernel = equation.invars[1].aval.shape
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    # A kernel's input axis has the channels of one group only, so groups need no special case.
    return 2 * math.prod(equation.outvars[0].aval.shape) * (math.prod(kernel) // outputs)


def _bodies(params: dict[str, Any]) -> Iterator[Any]:
    """All jaxprs among an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner
