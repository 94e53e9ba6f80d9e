"""What a network cannot do without, read from files: a frozen VAE, a tokenizer, and parameters to begin with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import safe_open

from tuna_jax.config import TunaConfig, VAEConfig
from tuna_jax.conversion import checkpoint_source, detect_format, weight_map
from tuna_jax.conversion.image_vae_file import load_image_vae
from tuna_jax.conversion.pretrained_backbones import rows_of
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.models import vae as vae_model
from tuna_jax.utils.param_tree import flatten, unflatten

PathLike = str | os.PathLike[str]


def read_vae(path: Path, config: TunaConfig) -> tuple[VAEConfig, Any]:
    """A VAE from a file of its own, in any layout, with its config and its parameters on the device."""
    found, params = open_vae(path, config)
    if found.latent_channels != config.vae.latent_channels:
        raise ValueError(
            f"the VAE in {path} has {found.latent_channels} latent channels and the model wants "
            f"{config.vae.latent_channels}"
        )
    return found, on_device(params)


def open_vae(path: Path, config: TunaConfig) -> tuple[VAEConfig, Any]:
    """A VAE's config and its parameters, in host memory.

    Args:
      path: a file of `experiments/emoji/vae.py`, a converted model with a VAE in it, or the Wan 2.2 VAE in any layout.
      config: a model's, for the sizes of a VAE that comes without its config.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: there is no VAE in it, or not the whole of one.
    """
    if not path.exists():
        raise FileNotFoundError(f"no VAE at {path}")
    if path.suffix == ".safetensors":
        with safe_open(path, framework="numpy") as file:
            exported = "vae" in (file.metadata() or {})
        if exported:
            return load_image_vae(path)
    carried, state = checkpoint_source.open_any(path)
    found, layout = (
        config.vae if carried is None else carried.vae,
        detect_format.detect_layout(state),
    )
    if layout in ("wan", "diffusers"):
        rows = rows_of(layout, config)
        absent = [row.torch for row in rows if row.torch not in state.entries]
        if absent:
            raise ValueError(f"the VAE in {path} lacks {len(absent)} tensors, such as {absent[0]}")
        flat = {row.path: row.transform.to_ours(state.read(row.torch)) for row in rows}
    else:
        flat = {name: state.read(name) for name in state.entries if name.startswith("vae.")}
    if not flat:
        raise ValueError(
            f"{path} holds no VAE that is known here; give one of experiments/emoji/vae.py, a converted model with a "
            f"VAE in it, or the Wan 2.2 VAE"
        )
    params = unflatten(flat)["vae"]
    shapes = vae_model.shapes(found)
    check_whole(f"the VAE in {path}", flatten(shapes), flatten(params))
    return found, params


def check_whole(what: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises ValueError unless both have the same names and shapes; lists all that differ."""
    ours, theirs = (
        {name: tuple(leaf.shape) for name, leaf in side.items()} for side in (wanted, found)
    )
    try:
        weight_map.compare(ours, theirs, ())
    except weight_map.ConversionError as error:
        raise ValueError(f"{what} is not whole: {error}") from error


def on_device(tree: Any) -> Any:
    """Host arrays as arrays of the default device."""
    return jax.device_put(tree)


def read_tokenizer(given: Tokenizer | PathLike | None, config: TunaConfig) -> Tokenizer:
    """The tokenizer that is meant, checked to fit the model's table."""
    if isinstance(given, Tokenizer):
        tokenizer = given
    elif given is None:
        tokenizer = Tokenizer()
    elif Path(given).is_dir():
        try:
            tokenizer = Tokenizer.from_pretrained(given)
        except KeyError as error:
            raise ValueError(f"the tokenizer in {given}: {error.args[0]}") from error
    else:
        tokenizer = Tokenizer(given)
    if config.language.vocabulary < tokenizer.size:
        named = "Qwen2.5's full tokenizer" if given is None else f"the tokenizer {given}"
        raise ValueError(
            f"the model's table has {config.language.vocabulary} rows, and {named} {tokenizer.size} ids; name the "
            f"tokenizer that it was trained with: --tokenizer=, or Tuna.load(tokenizer=)"
        )
    return tokenizer


def read_parameters(path: PathLike, shapes: Any, shardings: Any, *, averaged: bool = True) -> Any:
    """A network's parameters, to begin training with or to measure, each read alone and laid out over the mesh.

    Args:
      path: a run's workdir or checkpoint, `model.safetensors`, or what `convert from_torch` wrote.
      shapes, shardings: trees of what is wanted.
      averaged: of a run's checkpoint, take the averaged parameters if it has them.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: parameters are missing, foreign or of another shape; all are listed.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"no parameters at {path}; name a run's workdir, or what `python -m tuna_jax.convert from_torch` wrote"
        )
    state = checkpoint_source.open_parameters(path, averaged=averaged)[1]
    wanted, places = flatten(shapes), flatten(shardings)
    found = {name: entry for name, entry in state.entries.items() if not name.startswith("vae.")}
    check_whole(f"the model in {path}", wanted, found)

    def read(name: str) -> jax.Array:
        whole = np.asarray(state.read(name), wanted[name].dtype)
        return jax.make_array_from_callback(whole.shape, places[name], lambda part: whole[part])

    return unflatten({name: read(name) for name in wanted})
