"""Reads a trained or converted model from disk: parameters, VAE, tokenizer and defaults, as its run record says."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from tuna_jax.config import TunaConfig, VAEConfig
from tuna_jax.conversion import adapter_source, checkpoint_source, convert_checkpoint
from tuna_jax.conversion.image_vae_file import vae_path
from tuna_jax.conversion.readers import StateDict
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.inference import layouts, run_record
from tuna_jax.inference.components import (
    NotFiniteWeightsError,
    PathLike,
    check_complete,
    raise_not_finite,
    read_parameters,
    read_tokenizer,
    read_vae,
)
from tuna_jax.inference.exported_sampler import read as read_programs
from tuna_jax.inference.pipeline import Tuna, on_mesh
from tuna_jax.inference.run_record import IN_MODEL, RunRecord
from tuna_jax.models import tuna
from tuna_jax.parallel import leader, param_sharding
from tuna_jax.parallel.mesh import make_mesh, settings_of
from tuna_jax.training import staging
from tuna_jax.training.weights_file import LOADED_DTYPE, exported
from tuna_jax.utils import buckets, nonfinite_values, shipped
from tuna_jax.utils.param_tree import flatten, unflatten


def load(
    path: PathLike,
    *,
    vae: PathLike | None = None,
    tokenizer: Tokenizer | PathLike | None = None,
    dtype: str = "",
    programs: PathLike | None = None,
    mesh: Mesh | None = None,
    averaged: bool = True,
    check_weights: bool = True,
    adapter: PathLike | None = None,
) -> Tuna:
    """Reads a model; `Tuna.load` is this function.

    Args:
      path: a training run's workdir, its `model.safetensors` or one of its checkpoints (of an adapter's run, its model
        is loaded and the adapter merged); a model that `convert
        from_torch` wrote, as safetensors (a file or a folder) or Orbax; or 'emoji', the small model in the package.
        All but the last may be in a bucket, `gs://BUCKET/FOLDER`.
      vae: the VAE, if the model stores none (and does not work on pixels) or another one shall be used: a file that
        `experiments/emoji/vae.py` wrote, a converted model with a VAE, or the Wan 2.2 VAE in its own layout or
        diffusers'.
      tokenizer: a tokenizer, the folder of a Hugging Face tokenizer, or the name or file of a compact vocabulary. The
        default is the one that the run record names, otherwise Qwen2.5's.
      dtype: 'float32' or 'bfloat16', the dtype of the parameters; empty keeps the stored one (float32 of the model in
        the package, which is stored in bfloat16 to be small).
      programs: a folder that `tuna-jax export` wrote for this model; see `inference/exported_sampler.py`.
      mesh: shards the parameters over this mesh; each process reads the parts of its own devices. None: the default
        device holds them; under several processes (`parallel/leader.py`), `inference/layouts.py` chooses the mesh.
      averaged: of a run's checkpoint, take the averaged parameters if it has them.
      check_weights: whether to check that all weights are finite, which takes about a second per gigabyte.
      adapter: the workdir of a run with `config.lora`, its `adapter.safetensors` or one of its checkpoints, or what
        `convert from_peft` wrote; it is merged into the model's parameters.

    Raises:
      FileNotFoundError: there is no model at `path`, or no VAE or programs at theirs.
      ValueError: `path` is not a model, the model stores no VAE and none is given, or the VAE, the tokenizer or the
        programs do not fit the model; or weights are not finite.
    """
    if buckets.is_address(path):
        settings = {"vae": vae, "tokenizer": tokenizer, "dtype": dtype, "programs": programs}
        settings |= {"mesh": mesh, "averaged": averaged, "check_weights": check_weights}
        settings["adapter"] = adapter
        with staging.staged(os.fspath(path)) as folder:
            return load(folder, **settings)
    if staging.is_address(adapter or ""):
        with staging.staged(os.fspath(adapter or "")) as folder:
            return load(
                path,
                vae=vae,
                tokenizer=tokenizer,
                dtype=dtype,
                programs=programs,
                mesh=mesh,
                averaged=averaged,
                check_weights=check_weights,
                adapter=folder,
            )
    path = shipped.model_path(path)
    if leader.is_leading() and programs is not None:
        raise ValueError(
            f"the exported programs {programs} run in one process, and this run has {jax.process_count()}; leave them "
            f"out (--programs, or programs=)"
        )
    if leader.is_leading():
        options: dict[str, Any] = {"vae": vae, "tokenizer": tokenizer, "dtype": dtype}
        options |= {"averaged": averaged, "adapter": adapter}
        sizes = None if mesh is None else dict(mesh.shape)
        return _load_on_all(staging.address_of(path), sizes, check_weights=check_weights, **options)
    if not path.exists():
        raise FileNotFoundError(
            f"no trained model at {path}; `tuna-jax train` writes one when a run ends or is stopped, "
            f"`tuna-jax convert from_torch` converts a PyTorch checkpoint, and the package has "
            f"{', '.join(map(repr, shipped.MODELS))}"
        )
    if dtype and dtype not in convert_checkpoint.DTYPES:
        raise ValueError(f"dtype is {dtype!r}; choose {' or '.join(convert_checkpoint.DTYPES)}")
    source = (averaged and exported(path)) or path
    stored_config, state = checkpoint_source.open_parameters(source, averaged=averaged)
    dtype = dtype or state.metadata.get(LOADED_DTYPE, "")
    record = run_record.read(source, state)
    added = None
    if adapter is not None:
        added = checkpoint_source.open_adapter(os.fspath(adapter), averaged=averaged)
    if added is not None:
        state = adapter_source.merged(state, added, str(path))
    if mesh is None:
        shapes = convert_checkpoint.parameter_shapes(stored_config)
        params = _read_whole(state, shapes, dtype, path, check_weights)
        stored_vae = params.pop("vae", None)
    else:
        params = _read_sharded(source, stored_config, dtype, mesh, averaged, check_weights, added)
        stored_vae = None
    config, vae_params = stored_config, {}
    if stored_config.vae is not None:
        vae_config, vae_params = _read_vae(
            path, record, stored_config, stored_vae, vae, check_weights
        )
        config = dataclasses.replace(stored_config, vae=vae_config)
    elif vae is not None:
        raise ValueError(
            f"{path} works on pixels and has no VAE; leave out --vae={vae} (in Python: vae=)"
        )
    model = Tuna(
        config,
        params,
        vae_params,
        read_tokenizer(tokenizer or record.tokenizer or None, config),
        (record.size[0], record.size[1]),
        record.sampling,
        record.template,
        shapes={
            task: [(int(height), int(width)) for height, width in shapes]
            for task, shapes in record.shapes.items()
        },
    )
    if mesh is not None:
        model = on_mesh(model, mesh)
    if programs is None:
        return model
    return dataclasses.replace(
        model, programs=read_programs(programs, config, params, model.vae_params)
    )


@leader.on_all_processes_shared
def _load_on_all(path: str, mesh_sizes: dict[str, int] | None, **options: Any) -> Tuna:
    """`load` on every process: each reads the parts of its own devices. Without sizes `layouts` chooses them."""
    with staging.staged(path) as path:
        if mesh_sizes is None:
            mesh, options["dtype"] = chosen_layout(path, options["dtype"])
        else:
            mesh = make_mesh(settings_of(mesh_sizes))
        return load(path, mesh=mesh, **options)


def chosen_layout(path: PathLike, dtype: str = "") -> tuple[Mesh, str]:
    """The mesh over all devices, and the dtype, that `inference/layouts.py` chooses for the model at `path`.

    Raises:
      SourceError: there is no model at `path`.
      ValueError: the model does not fit the devices.
    """
    path = shipped.model_path(path)
    config = checkpoint_source.open_parameters(exported(path) or path)[0]
    layout = layouts.for_devices(config, dtype)
    logging.info("the model in %s: %s", path, layout.describe())
    return make_mesh(layout.mesh), layout.dtype


def vae_file(path: Path) -> Path | None:
    """The file of the VAE that a run's record names; None if the model stores the VAE's weights or has none.

    Raises:
      ValueError, RuntimeError: the model cannot be read.
    """
    config, state = checkpoint_source.open_parameters(path)
    if config.vae is None:
        return None
    record = run_record.read(path, state)
    return None if record.vae == IN_MODEL else vae_path(record.vae)


def _read_vae(
    path: Path,
    record: RunRecord,
    config: TunaConfig,
    stored_params: Any,
    vae: PathLike | None,
    check_weights: bool,
) -> tuple[VAEConfig, Any]:
    """The configuration and the parameters, on the device, of the VAE at `vae`, by default of the record's."""
    if vae is None and record.vae == IN_MODEL:
        if stored_params is not None:
            return config.video_vae, stored_params
        try:
            return read_vae(path, config, check_weights=check_weights)
        except ValueError as error:
            if isinstance(error, NotFiniteWeightsError):
                raise
            raise ValueError(
                f"{path} stores no VAE; name one: --vae=FILE, or Tuna.load(vae=)"
            ) from error
    file = vae_path(vae or record.vae)
    try:
        vae_config, vae_params = read_vae(file, config, check_weights=check_weights)
    except ValueError as error:
        if vae or record.vae:
            raise
        raise ValueError(
            f"{error}. That is the emoji VAE of this package; name this model's with --vae=FILE, or Tuna.load(vae=)"
        ) from error
    by_frame = vae_config.by_frame or record.config.video_vae.by_frame
    return dataclasses.replace(vae_config, by_frame=by_frame), vae_params


def _read_sharded(
    source: Path,
    config: TunaConfig,
    dtype: str,
    mesh: Mesh,
    averaged: bool,
    check_weights: bool,
    adapter: adapter_source.Adapter | None,
) -> dict[str, Any]:
    """The network's parameters sharded over a mesh, float32 unless `dtype` says otherwise."""
    shapes = tuna.shapes(config)
    if dtype:
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), shapes
        )
    return read_parameters(
        source,
        shapes,
        param_sharding.shardings(shapes, mesh),
        averaged=averaged,
        check_weights=check_weights,
        adapter=adapter,
    )


def _read_whole(
    state: StateDict, shapes: Mapping[str, Any], dtype: str, path: Path, check_weights: bool
) -> dict[str, Any]:
    """Parameters on the default device, read one at a time, as a nested dict.

    Raises:
      ValueError: missing, unknown or wrongly shaped parameters (all are listed), or ones that are not finite.
    """
    expected = flatten(shapes)
    if not any(name.startswith("vae.") for name in state.entries):
        expected = {name: leaf for name, leaf in expected.items() if not name.startswith("vae.")}
    check_complete(f"the model in {path}", expected, state.entries)
    params, found = {}, []
    for name in state.entries:
        array = state.read(name)
        if check_weights and (bad := nonfinite_values.count(array)):
            found.append((name, bad, array.size))
        params[name] = jnp.asarray(array, dtype=dtype or None)
    if found:
        raise_not_finite(f"the model in {path}", found)
    return unflatten(params)
