"""A digest of a model's parameters, by which an adapter knows the model that it was trained on.

The digest does not depend on the file, the format, the dtype that the model was loaded in (float32 or bfloat16), or the
number of devices: each parameter, rounded to bfloat16, is reduced to two sums of integers, whose order does not matter,
and the sums are hashed with the parameter's name and shape. It recognises models; it is no protection against forgery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from tuna_jax.parallel import distributed
from tuna_jax.utils.param_tree import flatten

_CHUNK = 1 << 22  # Values of an array on the host that are summed at once.


def of_arrays(params: Any) -> str:
    """The digest of a nested dict of arrays on devices; all processes that hold parts must call it."""
    flat = flatten(params)
    sums = jax.jit(lambda tree: {name: _device_sums(leaf) for name, leaf in tree.items()})(flat)
    return _hash(
        (name, tuple(flat[name].shape), distributed.to_host(pair)) for name, pair in sums.items()
    )


def of_readable(shapes: Mapping[str, Any], read: Callable[[str], np.ndarray]) -> str:
    """The digest of parameters that are read one by one on the host.

    Args:
      shapes: by dotted name, anything with a `shape`.
      read: the array of a name.
    """
    return _hash((name, tuple(leaf.shape), _host_sums(read(name))) for name, leaf in shapes.items())


def _hash(parts: Iterable[tuple[str, tuple[int, ...], Any]]) -> str:
    digest = hashlib.sha256()
    for name, shape, sums in sorted(parts, key=lambda part: part[0]):
        first, second = (int(value) for value in np.asarray(sums).reshape(-1))
        digest.update(f"{name} {list(shape)} {first} {second}\n".encode())
    return digest.hexdigest()[:16]


def _mixed(xp: Any, bits: Any, index: Any) -> Any:
    """Two uint32 per value that depend on its bits and its place: rounds of multiplication and shifts."""
    state = bits * xp.uint32(0x9E3779B1) + index * xp.uint32(0x85EBCA77)
    state = (state ^ (state >> xp.uint32(15))) * xp.uint32(0xC2B2AE3D)
    other = (state ^ (state >> xp.uint32(13))) * xp.uint32(0x27D4EB2F)
    return state ^ (state >> xp.uint32(16)), other ^ (other >> xp.uint32(16))


def _device_sums(leaf: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.bfloat16), jnp.uint16).astype(jnp.uint32)
    index = jnp.zeros(leaf.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(leaf.ndim)):  # The place in row-major order, modulo 2^32.
        iota = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        index = index + iota * jnp.uint32(stride % (1 << 32))
        stride *= leaf.shape[axis]
    first, second = _mixed(jnp, bits, index)
    return jnp.stack([jnp.sum(first, dtype=jnp.uint32), jnp.sum(second, dtype=jnp.uint32)])


def _host_sums(array: np.ndarray) -> np.ndarray:
    flat, total = np.ascontiguousarray(array).reshape(-1), np.zeros(2, np.uint32)
    with np.errstate(over="ignore"):
        for start in range(0, len(flat), _CHUNK):
            part = flat[start : start + _CHUNK].astype(ml_dtypes.bfloat16)
            bits = part.view(np.uint16).astype(np.uint32)
            index = np.arange(start, start + len(part), dtype=np.uint64).astype(np.uint32)
            first, second = _mixed(np, bits, index)
            total += np.array([first.sum(dtype=np.uint32), second.sum(dtype=np.uint32)], np.uint32)
    return total
