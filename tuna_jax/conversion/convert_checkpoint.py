"""Converts whole checkpoints file to file with the weight map, one tensor at a time.

Only the current tensor is in memory. A tensor keeps its dtype and its bits unless a cast is requested.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from tqdm import tqdm

from tuna_jax.config import TunaConfig, from_dict
from tuna_jax.conversion import missing_layers, weight_map
from tuna_jax.conversion.readers import SourceError, StateDict, open_files
from tuna_jax.conversion.safetensors_writer import Writer
from tuna_jax.conversion.weight_rows import Row
from tuna_jax.models import tuna, vae
from tuna_jax.utils import nonfinite_values
from tuna_jax.utils.param_tree import flatten

CONFIG_KEY = "tuna_config"
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}

# PyTorch buffers that are not learned -> their content; they are left out.
BUFFERS: dict[str, str] = {
    "rotary_emb.inv_freq": "frequencies of RoPE, computed from the config",
    "embeddings.position_ids": "0, 1, 2, ...",
}

Specs = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


class Sink(Protocol):
    """Receives tensors, whole or in parts along their first axis."""

    def write(self, key: str, tensor: np.ndarray, index: int | None = None) -> None:
        """Writes a tensor, or its part `index`."""
        ...


def parameter_shapes(config: TunaConfig) -> dict[str, Any]:
    """Shapes of all parameters, those of the VAE under 'vae'; nothing is allocated."""
    stored = {} if config.vae is None else {"vae": vae.shapes(config.vae)}
    return tuna.shapes(config) | stored


def without_buffers(state: StateDict) -> StateDict:
    """The state dict without BUFFERS."""
    entries = {
        key: entry
        for key, entry in state.entries.items()
        if not any(key.endswith(name) for name in BUFFERS)
    }
    return StateDict(entries, state.reader, state.metadata)


def left_out(config: TunaConfig, state: StateDict) -> dict[str, list[str]]:
    """What `to_ours` does not store of an official state dict: 'left out' -> keys with reasons."""
    ties = weight_map.aliases(config)
    lines = [f"{key}: equal to {ties[key]}, as checked" for key in state.entries if key in ties]
    for key in state.entries:
        lines += [f"{key}: {what}" for name, what in BUFFERS.items() if key.endswith(name)]
    return {"left out": lines}


def to_ours(
    config: TunaConfig,
    state: StateDict,
    open_sink: Callable[[Specs], Any],
    *,
    dtype: str = "",
    progress: bool = False,
    check_weights: bool = True,
    fill: str = "refuse",
    seed: int = 0,
) -> int:
    """An official state dict -> our parameters, stacked over layers, by dotted name.

    Args:
      config: the model.
      state: an official state dict; the whole VAE may be absent.
      open_sink: called once with the shape and dtype of every parameter; returns a context manager of a `Sink`.
      dtype: cast to this dtype, one of DTYPES; empty keeps each tensor's dtype.
      progress: show a progress bar.
      check_weights: whether to look for tensors that are not finite. They are converted to the bit like all others,
        and one warning names them; loading a model refuses them.
      fill: what to do about whole layers that are missing: 'refuse', or 'initialise' (`missing_layers.filled`).
      seed: of initialised layers.

    Returns:
      The number of converted PyTorch tensors, those of initialised layers included.

    Raises:
      ConversionError: a missing, unexpected or wrongly shaped tensor, an alias that differs, layers of one family
        in several dtypes. The message lists all tensors of a kind, and nothing is written.
    """
    state = without_buffers(state)
    if fill == "initialise":
        state, _ = missing_layers.filled(config, state, seed=seed)
    shapes = parameter_shapes(config)
    expected, rows = weight_map.torch_shapes(config, shapes), weight_map.rows(config)
    if not weight_map.has_vae(state.entries):
        expected = weight_map.without_vae(expected)
        rows = [row for row in rows if not row.torch.startswith(weight_map.VAE_PREFIX)]
    missing_layers.check(config, state, expected)
    weight_map.compare(expected, state.shapes, weight_map.aliases(config))
    weight_map.check_aliases(config, state.entries, state.read)
    flat = flatten(shapes)
    specs, mixed = {}, []
    for row in rows:
        dtypes = {state.entries[key].dtype for key in row.names()}
        if len(dtypes) > 1 and not dtype:
            mixed.append((row.torch, dtypes))
        specs[row.path] = flat[row.path].shape, DTYPES[dtype] if dtype else next(iter(dtypes))
    check_dtypes(mixed)
    pieces = [(row, index, key) for row in rows for index, key in enumerate(row.names())]
    with open_sink(specs) as sink, _warning_if_not_finite(check_weights) as look_at:
        for row, index, key in _with_progress(pieces, progress):
            stored = state.read(key)
            look_at(key, stored)
            tensor = _transformed(stored, row.transform.to_ours, dtype)
            sink.write(row.path, tensor, None if row.layers is None else index)
    return len(pieces)


def check_dtypes(families: Sequence[tuple[str, Iterable[np.dtype[Any]]]]) -> None:
    """Raises ConversionError for families, by their key, whose layers have several dtypes; all are listed."""
    if families:
        lines = [f"{key} ({', '.join(sorted({*map(str, dtypes)}))})" for key, dtypes in families]
        raise weight_map.ConversionError(
            f"{len(families)} families have layers of several dtypes, which cannot be stacked; cast them "
            f"with --dtype:\n  " + "\n  ".join(lines)
        )


@contextlib.contextmanager
def _warning_if_not_finite(check: bool) -> Iterator[Callable[[str, np.ndarray], None]]:
    """Yields a function to call with each tensor and its name; warns at the end of those that are not finite."""
    found: list[tuple[str, int, int]] = []

    def look_at(key: str, tensor: np.ndarray) -> None:
        if check and (bad := nonfinite_values.count(tensor)):
            found.append((key, bad, tensor.size))

    yield look_at
    if found:
        warnings.warn(
            f"{nonfinite_values.describe(found)}: weights that are NaN or infinite, converted as they are; loading "
            "the model will refuse them. Download the file again, or take an earlier checkpoint",
            stacklevel=3,
        )


def to_torch(
    config: TunaConfig,
    params: StateDict,
    open_sink: Callable[[Specs], Any],
    *,
    dtype: str = "",
    progress: bool = False,
    check_weights: bool = True,
) -> int:
    """Our parameters by dotted name -> an official state dict with aliases; the inverse of `to_ours`.

    Arguments and errors are those of `to_ours`. Parameters of an image-only VAE must be inflated first.
    """
    expected = {path: leaf.shape for path, leaf in flatten(parameter_shapes(config)).items()}
    rows = weight_map.rows(config)
    if not any(path.startswith("vae.") for path in params.entries):
        expected = {path: shape for path, shape in expected.items() if not path.startswith("vae.")}
        rows = [row for row in rows if not row.path.startswith("vae.")]
    weight_map.compare(expected, params.shapes, ())
    return write_rows(
        rows,
        weight_map.aliases(config),
        params,
        open_sink,
        dtype=dtype,
        progress=progress,
        check_weights=check_weights,
    )


def write_rows(
    rows: Sequence[Row],
    aliases: Mapping[str, str],
    params: StateDict,
    open_sink: Callable[[Specs], Any],
    *,
    dtype: str = "",
    progress: bool = False,
    check_weights: bool = True,
) -> int:
    """Writes the tensors of these rows of the weight map in PyTorch's layout; returns their number.

    Args:
      rows: the tensor families.
      aliases: PyTorch key -> key of the same tensor.
      params, open_sink, dtype, progress, check_weights: as in `to_torch`.

    Raises:
      ConversionError: parameters of the rows are missing; the message lists all of them.
    """
    absent = [f"missing: {row.path}" for row in rows if row.path not in params.entries]
    if absent:
        raise weight_map.ConversionError(
            f"{len(absent)} parameters are missing in this checkpoint:\n  " + "\n  ".join(absent)
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
    with open_sink(specs) as sink, _warning_if_not_finite(check_weights) as look_at:
        for row, index, key in _with_progress(pieces, progress):
            stored = params.read(row.path, None if row.layers is None else index)
            look_at(row.path if row.layers is None else f"{row.path}[{index}]", stored)
            tensor = _transformed(stored, row.transform.to_torch, dtype)
            for name in (key, *repeated.get(key, ())):
                sink.write(name, tensor)
    return len(specs)


def _with_progress(pieces: list[Any], progress: bool) -> Iterator[Any]:
    return iter(tqdm(pieces, unit="tensor", disable=not progress))


def _transformed(
    tensor: np.ndarray, transform: Callable[[np.ndarray], np.ndarray], dtype: str
) -> np.ndarray:
    """The transformed tensor, cast if `dtype` is not empty; contiguous."""
    if dtype and tensor.dtype != DTYPES[dtype]:
        tensor = tensor.astype(DTYPES[dtype])
    # As unsigned integers: NumPy copies its own dtypes much faster than bfloat16.
    bits = tensor.view(f"u{tensor.dtype.itemsize}")
    transformed = transform(bits)
    if not transformed.flags.c_contiguous:
        transformed = contiguous(transformed)
    return transformed.view(tensor.dtype)


def contiguous(array: np.ndarray) -> np.ndarray:
    """A contiguous copy. A large transposed matrix is copied in stripes, so that each cache line is read once."""
    if array.ndim != 2 or array.nbytes < 1 << 20:
        return np.ascontiguousarray(array)
    copy = np.empty(array.shape, array.dtype)
    for start in range(0, len(array), 64):
        copy[start : start + 64] = array[start : start + 64]
    return copy


def open_parameters(path: str | Path) -> tuple[TunaConfig, StateDict]:
    """Our parameters from safetensors, read lazily, with their config.

    Args:
      path: an output of `convert from_torch` or of a training run: a `.safetensors` file, or a folder of shards.

    Raises:
      SourceError: the file cannot be read, or has no config.
    """
    state = open_files(path)
    config = config_in(state.metadata)
    if config is None:
        raise SourceError(
            f"{path} has no config; it is not a checkpoint of tuna_jax. `convert inspect` describes it"
        )
    return config, state


def config_in(metadata: Mapping[str, str]) -> TunaConfig | None:
    """The config in the metadata of a safetensors file of ours; None if there is none."""
    if CONFIG_KEY in metadata:
        return from_dict({"preset": "tiny"} | json.loads(metadata[CONFIG_KEY]))
    if "settings" in metadata:
        return from_dict(json.loads(metadata["settings"])["model"])
    return None


def parameters_writer(
    path: str | Path, config: TunaConfig, *, shard_bytes: int = 5 * 10**9
) -> Callable[[Specs], Writer]:
    """A sink for `to_ours` that writes safetensors under our names, with the config in the metadata."""
    metadata = {CONFIG_KEY: json.dumps(config.to_dict())}
    return lambda specs: Writer(path, specs, metadata=metadata, shard_bytes=shard_bytes)
