"""Reads the components of a model from files: a frozen VAE, a tokenizer, and the network's parameters."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from tuna_jax.adapters import digest
from tuna_jax.config import TunaConfig, VAEConfig
from tuna_jax.conversion import adapter_source, checkpoint_source, detect_format, weight_map
from tuna_jax.conversion.image_vae_file import load_image_vae
from tuna_jax.conversion.pretrained_backbones import rows_of
from tuna_jax.conversion.readers import StateDict
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.models import vae as vae_model
from tuna_jax.parallel import distributed, leader
from tuna_jax.training.checkpoints import open_arrays
from tuna_jax.utils import nonfinite_values, shipped
from tuna_jax.utils.param_tree import flatten, unflatten

PathLike = str | os.PathLike[str]


def read_vae(
    path: Path, config: TunaConfig, *, check_weights: bool = True
) -> tuple[VAEConfig, Any]:
    """A VAE's config and its parameters on the device, from a file in any layout; see `open_vae`.

    Raises:
      FileNotFoundError: there is no file at `path`.
      ValueError: the file has no complete VAE, one with another number of latent channels than the model, or with
        `check_weights` weights that are not finite.
    """
    if config.vae is None:
        raise ValueError(
            f"the VAE {path} is given to a model that works on pixels and has none; leave it out"
        )
    vae_config, params = open_vae(path, config)
    if check_weights:
        check_finite(f"the VAE in {path}", flatten(params))
    if vae_config.latent_channels != config.vae.latent_channels:
        raise ValueError(
            f"the VAE in {path} has {vae_config.latent_channels} latent channels, and the model requires "
            f"{config.vae.latent_channels}"
        )
    return vae_config, on_device(params)


def open_vae(path: Path, config: TunaConfig) -> tuple[VAEConfig, Any]:
    """A VAE's config and its parameters in host memory.

    Args:
      path: a file that `experiments/emoji/vae.py` wrote, a converted model with a VAE, or the Wan VAE, 2.2 or 2.1,
        in its own layout or diffusers'.
      config: the model's config, whose VAE part is used for a file that stores no config.

    Raises:
      FileNotFoundError: there is no file at `path`.
      ValueError: the file has no VAE, or an incomplete one.
    """
    if not path.exists():
        raise FileNotFoundError(f"no VAE at {path}")
    if path.suffix == ".safetensors":
        with safe_open(path, framework="numpy") as file:
            is_image_vae = "vae" in (file.metadata() or {})
        if is_image_vae:
            return load_image_vae(path)
    stored_config, state = checkpoint_source.open_any(path)
    vae_config = config.vae if stored_config is None else stored_config.vae
    if vae_config is None:
        raise ValueError(f"{path} is a model that works on pixels; it has no VAE")
    layout = detect_format.detect_layout(state)
    if layout in ("wan", "diffusers"):
        rows = rows_of(layout, config)
        missing = [row.torch for row in rows if row.torch not in state.entries]
        if missing:
            raise ValueError(
                f"the VAE in {path} lacks {len(missing)} tensors, such as {missing[0]}"
            )
        flat = {row.path: row.transform.to_ours(state.read(row.torch)) for row in rows}
    else:
        flat = {name: state.read(name) for name in state.entries if name.startswith("vae.")}
    if not flat:
        raise ValueError(
            f"{path} has no VAE of a known format; name a file that experiments/emoji/vae.py wrote, a converted model "
            f"with a VAE, or the Wan 2.2 VAE"
        )
    params = unflatten(flat)["vae"]
    check_complete(f"the VAE in {path}", flatten(vae_model.shapes(vae_config)), flatten(params))
    return vae_config, params


def check_finite(what: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Checks that the numbers of arrays in host memory are finite.

    Raises:
      ValueError: some are not; `what` and the arrays are named.
    """
    found = [
        (name, bad, np.size(array))
        for name, array in arrays.items()
        if (bad := nonfinite_values.count(np.asarray(array)))
    ]
    if found:
        raise_not_finite(what, found)


class NotFiniteWeightsError(ValueError):
    """A file of weights has numbers that are not finite."""


def raise_not_finite(what: str, found: Sequence[tuple[str, int, int]]) -> None:
    """Raises NotFiniteWeightsError for arrays, each given by name, the number of such values, and size."""
    raise NotFiniteWeightsError(
        f"{what} has weights that are NaN or infinite: {nonfinite_values.describe(found)}; take an earlier "
        f"checkpoint or download the file again (--no-check_weights, or check_weights=False, loads it as it is)"
    )


def check_complete(what: str, expected: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
    """Checks that two flat mappings of arrays have the same names and shapes.

    Args:
      what: what `actual` is, for the error message.
      expected, actual: names to arrays, or to anything with a `shape`.

    Raises:
      ValueError: names or shapes differ; all of them are listed.
    """
    expected_shapes, actual_shapes = (
        {name: tuple(leaf.shape) for name, leaf in arrays.items()} for arrays in (expected, actual)
    )
    try:
        weight_map.compare(expected_shapes, actual_shapes, ())
    except weight_map.ConversionError as error:
        raise ValueError(f"{what} is incomplete or does not fit: {error}") from error


def on_device(tree: Any) -> Any:
    """The arrays of `tree` on the default device."""
    return jax.device_put(tree)


def read_tokenizer(tokenizer: Tokenizer | PathLike | None, config: TunaConfig) -> Tokenizer:
    """A tokenizer, checked to fit the model's embedding table.

    Args:
      tokenizer: a tokenizer, the folder of a Hugging Face tokenizer, or the name or file of a compact vocabulary; None:
        Qwen2.5's tokenizer.
      config: the model's config.

    Raises:
      ValueError: the folder's tokenizer lacks a special token, or the tokenizer has more ids than the table has rows.
    """
    name = "Qwen2.5's full tokenizer" if tokenizer is None else f"the tokenizer {tokenizer}"
    if tokenizer is None:
        tokenizer = Tokenizer()
    elif not isinstance(tokenizer, Tokenizer) and Path(tokenizer).is_dir():
        try:
            tokenizer = Tokenizer.from_pretrained(tokenizer)
        except KeyError as error:
            raise ValueError(f"the tokenizer in {tokenizer}: {error.args[0]}") from error
    elif not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer(tokenizer)
    if config.language.vocabulary < tokenizer.size:
        raise ValueError(
            f"the model's embedding table has {config.language.vocabulary} rows, and {name} has {tokenizer.size} ids; "
            f"name the tokenizer of its training: --tokenizer=, or Tuna.load(tokenizer=)"
        )
    return tokenizer


def read_parameters(
    path: PathLike,
    shapes: Any,
    shardings: Any,
    *,
    averaged: bool = True,
    check_weights: bool = True,
    adapter: adapter_source.Adapter | None = None,
) -> Any:
    """A network's parameters, sharded; each process reads the parts of its own devices, and casts them on the way.

    Args:
      path: a run's workdir or checkpoint, `model.safetensors`, or a model that `convert from_torch` wrote; or the name
        of a model in the package. The parameters of an adapter's run are those of its model, with the adapter merged.
      shapes: tree of `ShapeDtypeStruct`; parameters are cast to its dtypes.
      shardings: tree of the same structure with a sharding for each parameter.
      averaged: of a run's checkpoint, take the averaged parameters if it has them.
      check_weights: whether to check that they are finite.
      adapter: is merged into the parameters.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: parameters are missing, unknown or of another shape (all are listed), or not finite; or the
        adapter is for another model.
    """
    path = shipped.model_path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"no parameters at {path}; name a run's workdir, or a model that `tuna-jax convert from_torch` wrote"
        )
    state = checkpoint_source.open_parameters(path, averaged=averaged)[1]
    if adapter is None and isinstance(state, adapter_source.Merged):
        adapter, path = state.adapter, shipped.model_path(state.adapter.record.base)
        state, averaged = state.base, True
    expected = flatten(shapes)
    check_complete(f"the model in {path}", expected, adapter_source.network(state))
    if isinstance(state, adapter_source.Merged):  # An adapter's model may have one itself.
        params = read_parameters(path, shapes, shardings, check_weights=check_weights)
    else:
        params = _read_plain(path, state, shapes, shardings, averaged)
    if adapter is not None:
        adapter_source.check_fits(adapter, expected, str(path))
        adapter_source.check_digest(adapter, digest_of(state, params), str(path))
        params = adapter_source.merge_on_devices(params, adapter, shardings)
    if check_weights:
        _check_finite_shards(f"the model in {path}", params)
    return params


def digest_of(state: StateDict, params: Any) -> str:
    """The digest of a model that was read from `state` and is held by devices as `params`."""
    if isinstance(state, adapter_source.Merged):
        return state.identity()
    return digest.of_arrays(params)


def _read_plain(path: Path, state: StateDict, shapes: Any, shardings: Any, averaged: bool) -> Any:
    """Parameters as they are stored, sharded."""
    expected, sharding_of = flatten(shapes), flatten(shardings)
    arrays = open_arrays(path)
    leader.agree()  # Orbax's reading, and the check of weights, are done by all together.
    if arrays is None:
        return unflatten(
            {
                name: _read_shards(state, name, expected[name], sharding_of[name])
                for name in expected
            }
        )
    has_average = averaged and any(name.startswith("ema.") for name in arrays.leaves)
    return arrays.read_sharded("ema" if has_average else "params", shapes, shardings)


def _read_shards(state: StateDict, name: str, leaf: Any, sharding: Any) -> jax.Array:
    """A parameter of which this process reads the parts that its devices hold."""
    parts: dict[Any, np.ndarray] = {}

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, leaf.shape, strict=True))
        if bounds not in parts:
            part = state.read_part(name, tuple(slice(*bound) for bound in bounds))
            parts[bounds] = np.asarray(part, leaf.dtype)
        return parts[bounds]

    return jax.make_array_from_callback(leaf.shape, sharding, read)


def _check_finite_shards(what: str, params: Any) -> None:
    """Checks sharded arrays, each on its devices; all processes must call it.

    Raises:
      NotFiniteWeightsError: some numbers are not finite.
    """
    bad = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.sum(~jnp.isfinite(x)), tree))(params)
    counts = {name: int(distributed.to_host(count)) for name, count in flatten(bad).items()}
    sizes = {name: leaf.size for name, leaf in flatten(params).items()}
    if found := [(name, count, sizes[name]) for name, count in counts.items() if count]:
        raise_not_finite(what, found)
