"""Compiles programs whose values are compared, and not their speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

_OPTIONS = {
    # On CPU compiling would take much longer than running.
    "cpu": {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_use_fusion_emitters": False,
    }
}


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function, compiled for this process's first device: quickly on CPU, as usual on accelerators."""
    lowered = jax.jit(function).lower(*arguments)
    return lowered.compile(compiler_options=_OPTIONS.get(jax.default_backend()))(*arguments)
