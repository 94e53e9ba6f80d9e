"""FLOPs of a traced program, counted over its jaxpr: matrix products and convolutions, as often as they run.

The compiler's own count takes the body of a scan once, so it is of no use for stacked layers. Elementwise work is not
counted, as is usual for MFU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core as jax_core

from tuna_jax.compat import jax_internals


def count(jaxpr: jax_core.ClosedJaxpr) -> int:
    """FLOPs of a program over all devices together; a product of [m, k] and [k, n] has 2 m k n.

    What nobody uses is not counted. A scan counts its body times its length, a branch its dearest side, a `shard_map`
    its body once for every device. A Pallas kernel counts its body for every point of its grid: blocks that an
    attention mask lets the kernel skip are counted too, as they are in the dense product. A `while` with no known
    number of rounds counts one round.
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
    # A kernel's input axis is one group's alone, so groups need no care.
    return 2 * math.prod(equation.outvars[0].aval.shape) * (math.prod(kernel) // outputs)


def _bodies(params: dict[str, Any]) -> Iterator[Any]:
    """Every jaxpr among an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(item, "jaxpr", item)
            if hasattr(inner, "eqns"):
                yield inner
