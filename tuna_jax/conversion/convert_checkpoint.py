"""Whole checkpoints through the table, file to file: a tensor is read, turned and written before the next one.

Nothing is held but the tensor at hand. Bits pass untouched: a tensor keeps its dtype unless a cast is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from tqdm import tqdm

from tuna_jax.config import TunaConfig, from_dict
from tuna_jax.conversion import weight_map
from tuna_jax.conversion.readers import SourceError, StateDict, open_files
from tuna_jax.conversion.safetensors_writer import Writer
from tuna_jax.models import tuna, vae
from tuna_jax.utils.param_tree import flatten

CONFIG_KEY = "tuna_config"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

# PyTorch buffers that hold nothing learnt; they are left out, for the reason given.
BUFFERS: dict[str, str] = {
    "rotary_emb.inv_freq": "frequencies of RoPE, computed from the config",
    "embeddings.position_ids": "0, 1, 2, ...",
}

Specs = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


class Sink(Protocol):
    """Takes tensors, whole or in pieces along their first axis."""

    def write(self, key: str, tensor: np.ndarray, index: int | None = None) -> None:
        """Writes a tensor, or its part `index`."""
        ...


def parameter_shapes(config: TunaConfig) -> dict[str, Any]:
    """Shapes of all parameters, the VAE's under 'vae'; nothing is allocated."""
    return tuna.shapes(config) | {"vae": vae.shapes(config.vae)}


def without_buffers(state: StateDict) -> StateDict:
    """The state dict without what BUFFERS names."""
    entries = {
        key: entry
        for key, entry in state.entries.items()
        if not any(key.endswith(name) for name in BUFFERS)
    }
    return StateDict(entries, state.reader, state.metadata)


def to_ours(
    config: TunaConfig,
    state: StateDict,
    open_sink: Callable[[Specs], Any],
    *,
    dtype: str = "",
    progress: bool = False,
) -> int:
    """An official state dict -> our parameters, stacked over layers, by dotted name.

    Args:
      config: the model.
      state: all of an official state dict; the whole VAE may be absent.
      open_sink: called once with every parameter's shape and dtype; a context that gives a Sink.
      dtype: cast to it, one of DTYPES; empty keeps each tensor's own.
      progress: show a bar.

    Returns:
      How many PyTorch tensors were converted.

    Raises:
      ConversionError: a missing, foreign or wrongly shaped tensor, an alias that differs, layers of one family in
        several dtypes; all of a kind are listed, and nothing is written.
    """
    state = without_buffers(state)
    shapes = parameter_shapes(config)
    wanted, rows = weight_map.torch_shapes(config, shapes), weight_map.rows(config)
    if not weight_map.has_vae(state.entries):
        wanted = weight_map.without_vae(wanted)
        rows = [row for row in rows if not row.torch.startswith(weight_map.VAE_PREFIX)]
    weight_map.compare(wanted, state.shapes, weight_map.aliases(config))
    weight_map.check_aliases(config, state.entries, state.read)
    flat = flatten(shapes)
    specs, mixed = {}, []
    for row in rows:
        found = {state.entries[key].dtype for key in row.names()}
        if len(found) > 1 and not dtype:
            names = ", ".join(sorted(map(str, found)))
            mixed.append(f"{row.torch} ({names})")
        specs[row.path] = flat[row.path].shape, DTYPES[dtype] if dtype else next(iter(found))
    if mixed:
        raise weight_map.ConversionError(
            f"{len(mixed)} families have layers of several dtypes, which cannot be stacked as they are; cast them "
            f"with --dtype:\n  " + "\n  ".join(mixed)
        )
    pieces = [(row, index, key) for row in rows for index, key in enumerate(row.names())]
    with open_sink(specs) as sink:
        for row, index, key in _shown(pieces, progress):
            tensor = _turned(state.read(key), row.transform.to_ours, dtype)
            sink.write(row.path, tensor, None if row.layers is None else index)
    return len(pieces)


def to_torch(
    config: TunaConfig,
    params: StateDict,
    open_sink: Callable[[Specs], Any],
    *,
    dtype: str = "",
    progress: bool = False,
) -> int:
    """Our parameters, by dotted name -> an official state dict, aliases included; the inverse of `to_ours`.

    Args and errors are those of `to_ours`. Parameters of an image-only VAE do not fit: inflate them first.
    """
    wanted = {path: leaf.shape for path, leaf in flatten(parameter_shapes(config)).items()}
    rows = weight_map.rows(config)
    if not any(path.startswith("vae.") for path in params.entries):
        wanted = {path: shape for path, shape in wanted.items() if not path.startswith("vae.")}
        rows = [row for row in rows if not row.path.startswith("vae.")]
    weight_map.compare(wanted, params.shapes, ())
    return write_rows(
        rows, weight_map.aliases(config), params, open_sink, dtype=dtype, progress=progress
    )


def write_rows(
    rows: Sequence[weight_map.Row],
    aliases: Mapping[str, str],
    params: StateDict,
    open_sink: Callable[[Specs], Any],
    *,
    dtype: str = "",
    progress: bool = False,
) -> int:
    """What these rows of the table name, in PyTorch's layout; returns how many tensors that are.

    Args:
      rows: the families.
      aliases: PyTorch keys that repeat another one.
      params, open_sink, dtype, progress: as in `to_torch`.

    Raises:
      ConversionError: parameters that the rows name are missing; all are listed.
    """
    absent = [f"missing: {row.path}" for row in rows if row.path not in params.entries]
    if absent:
        raise weight_map.ConversionError(
            f"{len(absent)} parameters are not in this checkpoint:\n  " + "\n  ".join(absent)
        )
    pieces = [(row, index, key) for row in rows for index, key in enumerate(row.names())]
    specs: Specs = {}
    for row, _, key in pieces:
        entry = params.entries[row.path]
        shape = row.transform.torch_shape(entry.shape if row.layers is None else entry.shape[1:])
        specs[key] = shape, DTYPES[dtype] if dtype else entry.dtype
    repeated: dict[str, list[str]] = {}
    for alias, source in aliases.items():
        specs[alias] = specs[source]
        repeated.setdefault(source, []).append(alias)
    with open_sink(specs) as sink:
        for row, index, key in _shown(pieces, progress):
            stored = params.read(row.path, None if row.layers is None else index)
            tensor = _turned(stored, row.transform.to_torch, dtype)
            for name in (key, *repeated.get(key, ())):
                sink.write(name, tensor)
    return len(specs)


def _shown(pieces: list[Any], progress: bool) -> Iterator[Any]:
    return iter(tqdm(pieces, unit="tensor", disable=not progress))


def _turned(
    tensor: np.ndarray, transform: Callable[[np.ndarray], np.ndarray], dtype: str
) -> np.ndarray:
    """The transform and, if asked for, the cast; contiguous."""
    if dtype and tensor.dtype != DTYPES[dtype]:
        tensor = tensor.astype(DTYPES[dtype])
    # As plain bits: NumPy copies its own dtypes much faster than bfloat16.
    bits = tensor.view(f"u{tensor.dtype.itemsize}")
    turned = transform(bits)
    return (_copied(turned) if not turned.flags.c_contiguous else turned).view(tensor.dtype)


def _copied(turned: np.ndarray) -> np.ndarray:
    """A contiguous copy. A big transposed matrix is copied in stripes, so that each cache line is read once."""
    if turned.ndim != 2 or turned.nbytes < 1 << 20:
        return np.ascontiguousarray(turned)
    copy = np.empty(turned.shape, turned.dtype)
    for start in range(0, len(turned), 64):
        copy[start : start + 64] = turned[start : start + 64]
    return copy


def open_parameters(path: str | Path) -> tuple[TunaConfig, StateDict]:
    """Our parameters as safetensors, lazily, with the config that they carry.

    Args:
      path: what `convert from_torch` or a training run wrote: a `.safetensors` file, or a folder of shards.

    Raises:
      SourceError: not readable, or without a config.
    """
    state = open_files(path)
    config = config_in(state.metadata)
    if config is None:
        raise SourceError(
            f"{path} carries no config: it is not a checkpoint of tuna_jax. `convert inspect` says what it is"
        )
    return config, state


def config_in(metadata: Mapping[str, str]) -> TunaConfig | None:
    """The config in the remarks of a safetensors file of ours; None: there is none."""
    if CONFIG_KEY in metadata:
        return from_dict({"preset": "tiny"} | json.loads(metadata[CONFIG_KEY]))
    if "settings" in metadata:
        return from_dict(json.loads(metadata["settings"])["model"])
    return None


def parameters_writer(
    path: str | Path, config: TunaConfig, *, shard_bytes: int = 5 * 10**9
) -> Callable[[Specs], Writer]:
    """A sink for `to_ours`: safetensors under our names, with the config inside."""
    metadata = {CONFIG_KEY: json.dumps(config.to_dict())}
    return lambda specs: Writer(path, specs, metadata=metadata, shard_bytes=shard_bytes)
