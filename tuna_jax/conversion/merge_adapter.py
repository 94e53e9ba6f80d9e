"""Writes a model with its adapter merged, and takes the adapter out again, to the bit.

A sum of floating-point numbers cannot be undone by a subtraction: rounding has lost bits. What `unmerge` needs is
therefore stored when the adapter is merged: for each parameter that changed, the exclusive or of its bits before and
after. It is as large as these parameters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tuna_jax.adapters import lora
from tuna_jax.conversion import adapter_source, checkpoint_source, convert_checkpoint
from tuna_jax.conversion.readers import SourceError, StateDict
from tuna_jax.conversion.safetensors_writer import Writer
from tuna_jax.training.weights_file import LOADED_DTYPE
from tuna_jax.utils import safetensors_files

_KIND = "difference_of_a_merged_adapter"


def merge(
    base: str | Path,
    adapter: str | Path,
    output: str | Path,
    *,
    difference: str | Path | None = None,
    dtype: str = "",
    shard_bytes: int = 5 * 10**9,
) -> int:
    """Writes the model in `base` with the adapter merged; returns the number of parameters that changed.

    Args:
      base: a model of ours.
      adapter: an adapter of it.
      output: a `.safetensors` file, or a folder of shards.
      difference: a file for what `unmerge` needs; None: it is not written.
      dtype: of the changed parameters, 'float32' or 'bfloat16'; '': those of the model.
      shard_bytes: largest shard.

    Raises:
      WrongModelError: the adapter is for another model.
      FileExistsError: the output exists.
    """
    config, state = checkpoint_source.open_parameters(base)
    added = checkpoint_source.open_adapter(adapter)
    merged = adapter_source.merged(state, added, str(base))
    own = added.state.entries
    changed = {f"{path}.kernel" for path in lora.layers_of(own)} | (set(own) & set(state.entries))
    specs = {
        name: (
            entry.shape,
            convert_checkpoint.DTYPES[dtype] if dtype and name in changed else entry.dtype,
        )
        for name, entry in merged.entries.items()
    }
    if difference is not None and Path(difference).exists():
        raise FileExistsError(
            f"{difference} already exists and is not overwritten; use another --difference, or move it away"
        )
    differences: dict[str, np.ndarray] = {}
    with Writer(
        output, specs, metadata=_metadata(Path(base), config, state), shard_bytes=shard_bytes
    ) as sink:
        for name, (_, kind) in specs.items():
            array = merged.read(name).astype(kind, copy=False)
            sink.write(name, np.ascontiguousarray(array))
            if difference is not None and name in changed:
                differences[name] = _bits(array) ^ _bits(state.read(name).astype(kind))
    if difference is not None:
        stored = {name: state.entries[name].dtype.name for name in changed}
        safetensors_files.write(
            Path(difference), differences, {"kind": _KIND, "dtypes": json.dumps(stored)}
        )
    return len(changed)


def unmerge(
    model: str | Path,
    difference: str | Path,
    output: str | Path,
    *,
    shard_bytes: int = 5 * 10**9,
) -> int:
    """Writes the model from before `merge`, to the bit; returns the number of parameters that changed.

    Args:
      model: what `merge` wrote.
      difference: the file that `merge` wrote with it.
      output: a `.safetensors` file, or a folder of shards.
      shard_bytes: largest shard.

    Raises:
      SourceError: the difference is no such file, or one of another model.
      FileExistsError: the output exists.
    """
    config, state = checkpoint_source.open_parameters(model)
    bits, metadata = safetensors_files.read(difference)
    if metadata.get("kind") != _KIND:
        raise SourceError(
            f"{difference} is not what `tuna-jax convert merge_adapter --difference=` wrote"
        )
    stored = json.loads(metadata["dtypes"])
    for name, array in bits.items():
        entry = state.entries.get(name)
        if entry is None or (entry.shape, entry.dtype.itemsize) != (array.shape, array.itemsize):
            raise SourceError(
                f"{difference} is for another model than {model}: {name} is not there, or has another shape or dtype"
            )
    specs = {
        name: (entry.shape, np.dtype(stored.get(name, entry.dtype)))
        for name, entry in state.entries.items()
    }
    with Writer(
        output, specs, metadata=_metadata(Path(model), config, state), shard_bytes=shard_bytes
    ) as sink:
        for name, (_, kind) in specs.items():
            array = state.read(name)
            if name in bits:
                array = (_bits(array) ^ bits[name]).view(array.dtype).astype(kind)
            sink.write(name, np.ascontiguousarray(array))
    return len(bits)


def _bits(array: np.ndarray) -> np.ndarray:
    """The bits of an array as unsigned integers."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def _metadata(path: Path, config: Any, state: StateDict) -> dict[str, str]:
    """The metadata of a model, which it keeps."""
    settings = checkpoint_source.settings_of(path, state)
    if settings is None:
        return {convert_checkpoint.CONFIG_KEY: json.dumps(config.to_dict())}
    loaded = state.metadata.get(LOADED_DTYPE)
    kept = {"settings": json.dumps(settings), "step": state.metadata.get("step", "0")}
    return kept | ({LOADED_DTYPE: loaded} if loaded else {})
