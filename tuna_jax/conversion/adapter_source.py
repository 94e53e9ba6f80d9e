"""Adapters of tuna_jax on disk: with their model they read as one model, whose adapted kernels are merged."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import threading
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax.adapters import digest, lora
from tuna_jax.adapters.settings import AdapterRecord
from tuna_jax.config import TunaConfig
from tuna_jax.conversion.readers import Entry, StateDict
from tuna_jax.training.weights_file import LOADED_DTYPE, RECORD_KEY
from tuna_jax.utils.config_parsing import parse
from tuna_jax.utils.param_tree import unflatten


class WrongModelError(ValueError):
    """An adapter is for another model than the one that it is to be added to."""


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter that was opened, without reading its arrays.

    Attributes:
      path: where it is.
      config: of its model.
      record: its rank, alpha and model.
      state: its own arrays by dotted name.
      settings: of its run.
    """

    path: str
    config: TunaConfig
    record: AdapterRecord
    state: StateDict
    settings: Mapping[str, Any]

    def read(self) -> dict[str, np.ndarray]:
        """All of its arrays by dotted name."""
        return {name: self.state.read(name) for name in self.state.entries}


def record_in(settings: Mapping[str, Any] | None) -> AdapterRecord | None:
    """The adapter's record in the settings of a run; None if the run trained all parameters."""
    values = ((settings or {}).get(RECORD_KEY) or {}).get("adapter")
    return None if values is None else parse(AdapterRecord, values, f"{RECORD_KEY}.adapter")


def network(state: StateDict) -> dict[str, Entry]:
    """The entries of the network's parameters, without those of a VAE."""
    return {name: entry for name, entry in state.entries.items() if not name.startswith("vae.")}


def digest_of(base: StateDict) -> str:
    """The digest of a model whose parameters are read on the host, `adapters/digest.py`; it reads all of them."""
    if isinstance(base, Merged):
        return base.identity()
    return digest.of_readable(network(base), base.read)


def check_fits(adapter: Adapter, base: Mapping[str, Any], name: str) -> None:
    """Checks names and shapes.

    Args:
      adapter: the adapter.
      base: the model's parameters by dotted name, anything with shapes.
      name: of the model, for the message.

    Raises:
      WrongModelError: they do not fit; both are named.
    """
    try:
        what = f"the adapter in {adapter.path}, which is for {adapter.record.base}, and the model {name}"
        lora.check_fits(what, adapter.state.entries, base)
    except ValueError as error:
        raise WrongModelError(str(error)) from error


def check_digest(adapter: Adapter, found: str, name: str) -> None:
    """Checks that a model is the one that an adapter was trained on.

    Args:
      adapter: the adapter.
      found: the model's digest.
      name: of the model, for the message.

    Raises:
      WrongModelError: it is another; both are named.
    """
    record = adapter.record
    if record.digest and record.digest != found:
        raise WrongModelError(
            f"the adapter in {adapter.path} was trained on the model {record.base} with the digest {record.digest}, "
            f"and {name} has the digest {found}: its parameters are others. Name the right one with --model= and "
            f"--adapter=, or Tuna.load(adapter=)"
        )


@dataclasses.dataclass(frozen=True)
class Merged(StateDict):
    """A model and its adapter as one state dict; the digest of the model is checked before the first read.

    Attributes:
      base: the model.
      adapter: its adapter.
    """

    base: StateDict = dataclasses.field(kw_only=True)
    adapter: Adapter = dataclasses.field(kw_only=True)

    def identity(self) -> str:
        """A digest of the two together; it does not depend on how their sum is rounded."""
        return identity(digest_of(self.base), self.adapter)


def identity(base: str, adapter: Adapter) -> str:
    """The digest of a model with an adapter, from the model's digest."""
    own = digest.of_readable(adapter.state.entries, adapter.state.read)
    text = f"{base} {own} {adapter.record.scale!r}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def merged(base: StateDict, adapter: Adapter, name: str) -> Merged:
    """A model with its adapter; arrays are read, and merged in float32, on request.

    Kernels keep the dtype of the model, or the one that it is loaded in.

    Args:
      base: the model's parameters by dotted name.
      adapter: the adapter.
      name: of the model, for messages.

    Raises:
      WrongModelError: the adapter is for another model; of other parameters, at the first read.
    """
    check_fits(adapter, base.entries, name)
    own, scale = adapter.state, adapter.record.scale
    layers = {f"{path}.kernel": path for path in lora.layers_of(own.entries)}
    loaded = base.metadata.get(LOADED_DTYPE, "")
    entries = dict(base.entries)
    for key, entry in base.entries.items():
        if key in layers or key in own.entries:
            dtype = np.dtype(loaded) if loaded else entry.dtype
            entries[key] = dataclasses.replace(entry, dtype=dtype)
    lock, checked = threading.Lock(), [False]
    matrix = functools.cache(own.read)  # Orbax reads whole arrays; these are small.

    def check() -> None:
        with lock:
            if not checked[0] and adapter.record.digest:
                check_digest(adapter, digest_of(base), name)
            checked[0] = True

    def part(key: str, index: tuple[slice, ...]) -> np.ndarray:
        check()
        if key in own.entries:
            return own.read_part(key, index).astype(entries[key].dtype)
        kernel = base.read_part(key, index)
        if key not in layers:
            return kernel
        path, (*stack, inputs, outputs) = layers[key], index
        a = matrix(path + lora.A)[(*stack, inputs, slice(None))]
        b = matrix(path + lora.B)[(*stack, slice(None), outputs)]
        return _sum(kernel, a, b, scale, entries[key].dtype)

    def read(key: str, index: int | None) -> np.ndarray:
        check()
        if key in own.entries:
            return own.read(key, index).astype(entries[key].dtype)
        kernel = base.read(key, index)
        if key not in layers:
            return kernel
        a, b = (matrix(layers[key] + end) for end in (lora.A, lora.B))
        a, b = (a, b) if index is None else (a[index], b[index])
        return _sum(kernel, a, b, scale, entries[key].dtype)

    metadata = {**own.metadata} | ({LOADED_DTYPE: loaded} if loaded else {})
    return Merged(entries, read, metadata, part, base=base, adapter=adapter)


def _sum(
    kernel: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float, dtype: np.dtype[Any]
) -> np.ndarray:
    """`kernel + scale * a @ b`, one layer at a time."""
    result = np.empty(kernel.shape, dtype)
    factor = np.float32(scale)
    for place in np.ndindex(kernel.shape[:-2]):
        product = factor * (a[place].astype(np.float32) @ b[place].astype(np.float32))
        result[place] = kernel[place].astype(np.float32) + product
    return result


def merge_on_devices(params: Any, adapter: Adapter, shardings: Any) -> Any:
    """A model's parameters with an adapter, sharded; `params` are donated.

    Args:
      params: nested dict of sharded arrays.
      adapter: read on this process.
      shardings: of `params`.
    """
    own = unflatten(adapter.read())
    scale = adapter.record.scale
    run = jax.jit(
        lambda base, own: lora.merge(base, own, scale), out_shardings=shardings, donate_argnums=0
    )
    return run(params, jax.tree.map(jnp.asarray, own))
