"""How activations lie over the devices, said by the model in logical names and decided by somebody else.

The model knows no mesh. Where it matters it says what an array's axes are, `constrain(x, "batch", "sequence", "width")`,
and a `LogicalSharding`, entered with `use_sharding` while a program is traced, makes of that what it will
(`parallel/activation_sharding.py`). Without one nothing happens.

A sharding must be entered inside the function that `jax.jit` traces, or be an argument of it: JAX remembers a trace
by the function and its arguments, and knows nothing of what stood around it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array

Axes = tuple[str | None, ...]
"""A logical name for every axis of an array; None: never split."""


@runtime_checkable
class LogicalSharding(Protocol):
    """What decides how activations lie."""

    @property
    def platform(self) -> str:
        """What the program is compiled for: 'cpu', 'gpu' or 'tpu'."""
        ...

    def place(self, x: Array, axes: Axes) -> Array:
        """`x`, laid out as its axes want it."""
        ...

    def parts(self, name: str, size: int) -> int:
        """Into how many parts an axis of this name and size is split."""
        ...

    def local(
        self, function: Callable[..., Array], inputs: tuple[Axes, ...], output: Axes
    ) -> Callable[..., Array]:
        """`function` on each device's own parts of its arguments."""
        ...


_current: ContextVar[LogicalSharding | None] = ContextVar("sharding", default=None)


@contextlib.contextmanager
def use_sharding(sharding: LogicalSharding | None) -> Iterator[None]:
    """Everything traced inside is laid out by `sharding`; None: by nobody."""
    token = _current.set(sharding)
    try:
        yield
    finally:
        _current.reset(token)


def constrain(x: Array, *axes: str | None) -> Array:
    """`x`, whose axes are named, where the sharding wants it; `x` itself without a sharding."""
    sharding = _current.get()
    return x if sharding is None else sharding.place(x, axes)


def parts(name: str, size: int) -> int:
    """Into how many parts an axis is split; 1 without a sharding."""
    sharding = _current.get()
    return 1 if sharding is None else sharding.parts(name, size)


def local(
    function: Callable[..., Array], inputs: tuple[Axes, ...], output: Axes
) -> Callable[..., Array]:
    """`function` on each device's own parts of its arguments: for kernels that the compiler cannot split.

    Args:
      function: of arrays, to an array.
      inputs: the axes of every argument. output: those of the result.
    """
    sharding = _current.get()
    return function if sharding is None else sharding.local(function, inputs, output)


def platform() -> str:
    """What the program that is being traced is compiled for: the sharding's devices, else JAX's default."""
    sharding: Any = _current.get()
    return jax.default_backend() if sharding is None else sharding.platform
