"""Reads and writes parameters as Orbax checkpoints, converted ones and those of training runs.

A converted checkpoint has the layout of a training run: a folder for step 0 with the parameters under `params` and the
config under `tuna_config`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tuna_jax.config import TunaConfig, from_dict
from tuna_jax.conversion import adapter_source, convert_checkpoint
from tuna_jax.conversion.detect_format import open_weights
from tuna_jax.conversion.readers import Entry, SourceError, StateDict
from tuna_jax.parallel import param_sharding
from tuna_jax.parallel.mesh import make_mesh
from tuna_jax.training import weights_file
from tuna_jax.training.checkpoints import Checkpoints, open_arrays
from tuna_jax.utils import shipped
from tuna_jax.utils.param_tree import flatten, unflatten


class OrbaxWriter:
    """A sink for `convert_checkpoint.to_ours` that puts each parameter on the mesh when all of its layers are written.

    Leaving the context saves all parameters atomically; after an error it saves nothing.

    Args:
      folder: created; it must not exist, or be empty.
      config: saved with the parameters.
      specs: shape and dtype of every parameter.
      mesh: holds the parameters until they are saved; None: all devices, sharded over `fsdp`.

    Raises:
      FileExistsError: the folder exists and is not empty.
    """

    def __init__(
        self,
        folder: str | Path,
        config: TunaConfig,
        specs: convert_checkpoint.Specs,
        mesh: Mesh | None = None,
    ):
        self._folder, self._config = Path(folder), config
        if self._folder.exists() and (not self._folder.is_dir() or any(self._folder.iterdir())):
            raise FileExistsError(
                f"{folder} already exists and is not overwritten; use another output, or move it away"
            )
        mesh = make_mesh() if mesh is None else mesh
        shapes = {path: jax.ShapeDtypeStruct(*spec) for path, spec in specs.items()}
        network = {path: leaf for path, leaf in shapes.items() if not path.startswith("vae.")}
        sharded = param_sharding.shardings(unflatten(network), mesh)
        # The VAE is frozen and small, so it is replicated.
        self._shardings = dict.fromkeys(specs, param_sharding.replicated(mesh)) | flatten(sharded)
        self._specs = specs
        self._partial: dict[str, tuple[np.ndarray, set[int]]] = {}
        self._done: dict[str, jax.Array] = {}

    def write(self, key: str, tensor: np.ndarray, index: int | None = None) -> None:
        """Writes a parameter, or its part `index` along the first axis."""
        if index is None:
            self._put_on_mesh(key, tensor)
            return
        shape, dtype = self._specs[key]
        whole, missing = self._partial.setdefault(
            key, (np.empty(shape, dtype), set(range(shape[0])))
        )
        whole[index] = tensor
        missing.discard(index)
        if not missing:
            self._put_on_mesh(key, self._partial.pop(key)[0])

    def _put_on_mesh(self, key: str, whole: np.ndarray) -> None:
        self._done[key] = jax.make_array_from_callback(
            whole.shape, self._shardings[key], lambda part: whole[part]
        )

    def __enter__(self) -> OrbaxWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            return
        saved = Checkpoints(self._folder, keep=1)
        record = {convert_checkpoint.CONFIG_KEY: dataclasses.asdict(self._config)}
        saved.save(0, {"params": unflatten(self._done)}, config=record)
        saved.close()


def open_any(path: str | Path) -> tuple[TunaConfig | None, StateDict]:
    """Any weights, read lazily, with their config if there is one: an Orbax checkpoint, or a file of `open_weights`."""
    if open_arrays(path) is not None:
        return open_parameters(path)
    state = open_weights(path)
    return convert_checkpoint.config_in(state.metadata), state


def open_parameters(path: str | Path, *, averaged: bool = True) -> tuple[TunaConfig, StateDict]:
    """Our parameters by dotted name, read lazily, with their config: safetensors or Orbax.

    Of the run of an adapter, the parameters of its model with the adapter merged.

    Args:
      path: an output of `convert from_torch`; or a training run's workdir, checkpoint, `model.safetensors` or
        `adapter.safetensors`.
      averaged: read the averaged parameters of a run's checkpoint if it has them.

    Raises:
      SourceError: the path is neither, or has no config, or there is no model for an adapter.
      WrongModelError: the model of an adapter has changed.
    """
    config, state, settings = _open_stored(path, averaged)
    record = adapter_source.record_in(settings)
    if record is None:
        return config, state
    adapter = adapter_source.Adapter(str(path), config, record, state, settings or {})
    base = shipped.model_path(record.base)
    if not base.exists():
        raise SourceError(
            f"the adapter in {path} is for the model {record.base}, which is not there; name the model with "
            f"--model=PATH and the adapter with --adapter={path} (in Python: Tuna.load(PATH, adapter=))"
        )
    return config, adapter_source.merged(open_parameters(base)[1], adapter, record.base)


def open_adapter(path: str | Path, *, averaged: bool = True) -> adapter_source.Adapter:
    """An adapter by itself, without its model.

    Args:
      path: workdir, checkpoint or `adapter.safetensors` of a run with `config.lora`, or what `convert from_peft` wrote.
      averaged: as in `open_parameters`.

    Raises:
      SourceError: there is no adapter.
    """
    source = weights_file.exported(path) if Path(path).is_dir() and averaged else None
    config, state, settings = _open_stored(source or path, averaged)
    record = adapter_source.record_in(settings)
    if record is None:
        raise SourceError(
            f"{path} is a whole model and no adapter; name the workdir of a run with config.lora.targets, or an "
            f"adapter that `tuna-jax convert from_peft` wrote"
        )
    return adapter_source.Adapter(str(path), config, record, state, settings or {})


def _open_stored(
    path: str | Path, averaged: bool
) -> tuple[TunaConfig, StateDict, Mapping[str, Any] | None]:
    """What a path holds, with its config, and the settings of its run if it comes from one."""
    arrays = open_arrays(path)
    if arrays is None:
        source = Path(path) / weights_file.ADAPTER_FILE
        config, state = convert_checkpoint.open_parameters(source if source.is_file() else path)
        stored = state.metadata.get("settings")
        return config, state, None if stored is None else json.loads(stored)
    record = arrays.config
    if convert_checkpoint.CONFIG_KEY in record:
        config = from_dict({"preset": "tiny"} | record[convert_checkpoint.CONFIG_KEY])
    elif "model" in record:
        config = from_dict(record["model"])
    else:
        raise SourceError(f"{arrays.folder} has no config; it is not a checkpoint of tuna_jax")
    averaged = averaged and any(leaf.startswith("ema.") for leaf in arrays.leaves)
    prefix = "ema." if averaged else "params."
    entries = {
        name.removeprefix(prefix): Entry(
            tuple(leaf.shape), np.dtype(leaf.dtype), str(arrays.folder)
        )
        for name, leaf in arrays.leaves.items()
        if name.startswith(prefix)
    }
    cache: dict[str, np.ndarray] = {}

    def read(key: str, index: int | None) -> np.ndarray:
        # The layers of a parameter are read one after the other, and Orbax reads whole parameters.
        if key not in cache:
            cache.clear()
            cache[key] = arrays.read(prefix + key)
        return cache[key] if index is None else cache[key][index]

    return config, StateDict(entries, read), record


def settings_of(source: Path, state: StateDict) -> Mapping[str, Any] | None:
    """The settings of the training run of a model; None if it does not come from a run."""
    if "settings" in state.metadata:
        return json.loads(state.metadata["settings"])
    arrays = open_arrays(source)
    return arrays.config if arrays is not None and "model" in arrays.config else None
