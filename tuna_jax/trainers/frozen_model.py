"""The frozen model of an adapter's run (`config.lora`): read at every start, sharded, and checked to be the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tuna_jax.adapters.lora import Adapters
from tuna_jax.adapters.settings import AdapterRecord, LoraSettings
from tuna_jax.config import TunaConfig
from tuna_jax.conversion import adapter_source, checkpoint_source
from tuna_jax.inference.components import check_complete, digest_of, read_parameters
from tuna_jax.models import tuna
from tuna_jax.parallel import param_sharding
from tuna_jax.training.checkpoints import MismatchedCheckpointError, open_arrays
from tuna_jax.utils import shipped
from tuna_jax.utils.config_parsing import parse
from tuna_jax.utils.param_tree import flatten


class FrozenModel(NamedTuple):
    """The frozen model of an adapter.

    Attributes:
      params: its parameters, sharded, in the dtype of `config.lora.base_dtype`; None if the run has no adapter.
      record: of the adapter, for the run's record; None too.
    """

    params: Any = None
    record: AdapterRecord | None = None


def check(lora: LoraSettings, init_from: str, config: TunaConfig, workdir: str | Path) -> None:
    """Checks, without reading arrays, that the adapter fits its model and the run in the workdir, if there is one.

    Args:
      lora, init_from: `config.lora` and `config.init_from`.
      config: the model.
      workdir: of the run.

    Raises:
      FileNotFoundError: there is no model at `init_from`.
      ValueError: no model is named, it is another than `config`, or a target matches nothing.
      MismatchedCheckpointError: the workdir holds a run with another adapter, or without one.
    """
    stored = open_arrays(workdir)
    if stored is not None:
        before = parse(LoraSettings, stored.config.get("lora") or {}, "config.lora")
        for key in ("targets", "rank", "alpha", "trained"):
            old, new = getattr(before, key), getattr(lora, key)
            if old != new:
                raise MismatchedCheckpointError(
                    f"config.lora.{key} is {new!r}, and the run in {workdir} was started with {old!r}; use that value, "
                    f"or another --workdir"
                )
    if not lora.targets:
        return
    network = tuna.shapes(config)
    Adapters(lora, network)
    if not init_from:
        raise ValueError(
            "config.lora trains an adapter of a model, and config.init_from names none; set it to a run's workdir, a "
            "model that `tuna-jax convert from_torch` wrote, or 'emoji'"
        )
    path = shipped.model_path(init_from)
    if not path.exists():
        raise FileNotFoundError(
            f"config.init_from: no model at {init_from}, of which config.lora is to train an adapter; name a run's "
            f"workdir, or a model that `convert from_torch` wrote"
        )
    state = checkpoint_source.open_parameters(path)[1]
    try:
        check_complete(f"the model in {init_from}", flatten(network), adapter_source.network(state))
    except ValueError as error:
        raise ValueError(f"config.init_from: {error}") from error


def read(
    lora: LoraSettings, init_from: str, config: TunaConfig, workdir: str | Path, mesh: Mesh
) -> FrozenModel:
    """The frozen model, over the mesh of the run; all processes must call it.

    Args:
      lora, init_from, config, workdir: as of `check`, which comes first.
      mesh: of the run.

    Raises:
      MismatchedCheckpointError: the model in `init_from` is not the one that the run in the workdir was started with.
    """
    if not lora.targets:
        return FrozenModel()
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(lora.base_dtype)),
        tuna.shapes(config),
    )
    params = read_parameters(init_from, shapes, param_sharding.shardings(shapes, mesh))
    state = checkpoint_source.open_parameters(shipped.model_path(init_from))[1]
    found = digest_of(state, params)
    stored = open_arrays(workdir)
    before = None if stored is None else adapter_source.record_in(stored.config)
    if before is not None and before.digest != found:
        raise MismatchedCheckpointError(
            f"the run in {workdir} trains an adapter of the model {before.base} with the digest {before.digest}, and "
            f"config.init_from={init_from} has the digest {found}: its parameters are others. Name the model that the "
            f"run was started with, or another --workdir"
        )
    return FrozenModel(
        params, AdapterRecord(rank=lora.rank, alpha=lora.alpha, base=init_from, digest=found)
    )
