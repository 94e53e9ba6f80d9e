"""How activations are sharded: the model names the axes of its arrays, and a `LogicalSharding` decides.

The model knows no mesh. Where it matters it names an array's axes, `constrain(x, "batch", "sequence", "width")`. A
`LogicalSharding` (`parallel/activation_sharding.py`), entered with `use_sharding` while a program is traced, turns the
names into a sharding constraint. Without one, `constrain` returns its argument.

Enter a sharding inside the function that `jax.jit` traces, or make it an argument of that function: JAX caches a trace
by the function and its arguments, and does not see a context around it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array

Axes = tuple[str | None, ...]
"""A logical name for every axis of an array; None: the axis is never split."""


@runtime_checkable
class LogicalSharding(Protocol):
    """Decides how activations are sharded."""

    @property
    def platform(self) -> str:
        """The platform that the program is compiled for: 'cpu', 'gpu' or 'tpu'."""
        ...

    def constrain(self, x: Array, axes: Axes) -> Array:
        """`x` with a sharding constraint for these axes."""
        ...

    def parts(self, name: str, size: int) -> int:
        """The number of parts that an axis of this name and size is split into."""
        ...

    def ring_axes(self) -> Mapping[str, int]:
        """The mesh axes round which keys and values of a split sequence travel, with their sizes."""
        ...

    def local(
        self, function: Callable[..., Array], inputs: tuple[Axes, ...], output: Axes
    ) -> Callable[..., Array]:
        """`function` on each device's own parts of its arguments."""
        ...


_current: ContextVar[LogicalSharding | None] = ContextVar("sharding", default=None)


@contextlib.contextmanager
def use_sharding(sharding: LogicalSharding | None) -> Iterator[None]:
    """Activations of everything traced inside are sharded by `sharding`; None: without constraints."""
    token = _current.set(sharding)
    try:
        yield
    finally:
        _current.reset(token)


def constrain(x: Array, *axes: str | None) -> Array:
    """`x`, whose axes have these names, with the current sharding's constraint; `x` itself without a sharding."""
    sharding = _current.get()
    return x if sharding is None else sharding.constrain(x, axes)


def parts(name: str, size: int) -> int:
    """The number of parts that an axis is split into; 1 without a sharding."""
    sharding = _current.get()
    return 1 if sharding is None else sharding.parts(name, size)


def ring_axes() -> Mapping[str, int]:
    """The mesh axes round which keys and values travel (`models/ring.py`), with their sizes; empty: each device gets
    those of whole sequences. A function that `local` runs may use the names in collectives."""
    sharding = _current.get()
    return {} if sharding is None else sharding.ring_axes()


def local(
    function: Callable[..., Array], inputs: tuple[Axes, ...], output: Axes
) -> Callable[..., Array]:
    """`function` on each device's own parts of its arguments: for kernels that the compiler cannot split.

    Args:
      function: takes arrays and returns an array.
      inputs: the axes of every argument.
      output: the axes of the result.
    """
    sharding = _current.get()
    return function if sharding is None else sharding.local(function, inputs, output)


def platform() -> str:
    """The platform that the current trace is compiled for: that of the sharding's devices, else JAX's default."""
    sharding: Any = _current.get()
    return jax.default_backend() if sharding is None else sharding.platform
