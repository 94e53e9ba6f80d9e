"""`tuna_jax.Tuna`: a trained or converted model, read from disk and ready to draw, edit, answer and chat."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from safetensors import safe_open

from tuna_jax.config import TunaConfig, VAEConfig, from_dict
from tuna_jax.conversion import sources, table, transfer
from tuna_jax.conversion.parents import rows_of
from tuna_jax.conversion.state_dicts import StateDict
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.models import vae as vae_model
from tuna_jax.recipes import emoji, weights
from tuna_jax.recipes.abilities import Model
from tuna_jax.recipes.world import World
from tuna_jax.training.checkpoints import open_arrays
from tuna_jax.training.export import MODEL_FILE
from tuna_jax.training.image_vae import load_image_vae
from tuna_jax.training.settings import parse
from tuna_jax.trees import flatten, unflatten

PathLike = str | os.PathLike[str]


class Tuna(Model):
    """One model with all five abilities; `load` reads it, and `Model` says what it can do.

    Example:
        tuna = Tuna.load("runs/demo")
        pictures = tuna.generate_image(["a red apple on a blue background"], seed=3)
        print(tuna.answer(pictures[0], "what is this?"))
    """

    @classmethod
    def load(
        cls,
        path: PathLike,
        *,
        vae: PathLike | None = None,
        tokenizer: Tokenizer | PathLike | None = None,
        dtype: str = "",
    ) -> Tuna:
        """Reads a model.

        Args:
          path: a training run's workdir, its `model.safetensors` or a checkpoint of it; or what `convert from_torch`
            wrote, as safetensors (a file or a folder) or Orbax.
          vae: the VAE, where the model has none in it or another is wanted: a file of `experiments/emoji_vae.py`, a
            converted model with a VAE in it, or the Wan 2.2 VAE in its own names or diffusers'.
          tokenizer: a tokenizer; or the folder of a Hugging Face one; or the name or file of a compact vocabulary. A
            run names its own; else the full Qwen2.5 tokenizer is taken.
          dtype: 'float32' or 'bfloat16' to hold parameters in; empty keeps each as it is stored.

        Raises:
          FileNotFoundError: nothing there.
          ValueError: not a model, no VAE in it and none given, a VAE or tokenizer that does not fit.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(
                f"no trained model at {path}; `python -m tuna_jax.train` writes one when a run ends or is stopped, "
                f"and `python -m tuna_jax.convert from_torch` makes one of a PyTorch checkpoint"
            )
        if dtype and dtype not in transfer.DTYPES:
            raise ValueError(f"dtype is {dtype!r}; choose {' or '.join(transfer.DTYPES)}")
        exported = path / MODEL_FILE
        source = exported if path.is_dir() and exported.is_file() else path
        config, state = weights.open_parameters(source)
        params = _tree(state, transfer.parameter_shapes(config), dtype, path)
        found = params.pop("vae", None)
        settings = _settings(source, state)
        if settings is not None:
            own = _of_run(settings, params, vae, tokenizer)
            return cls(
                **{field.name: getattr(own, field.name) for field in dataclasses.fields(own)}
            )
        if vae is not None:
            vae_config, found = _read_vae(Path(vae), config)
            config = dataclasses.replace(config, vae=vae_config)
        if found is None:
            raise ValueError(f"{path} has no VAE in it; name one: --vae=FILE, or Tuna.load(vae=)")
        words = _tokenizer(tokenizer, config)
        side = config.representation.grid * config.vae.spatial_factor
        return cls(config, params, found, words, (side, side))


def _of_run(
    values: Mapping[str, Any],
    params: Any,
    vae: PathLike | None,
    tokenizer: Tokenizer | PathLike | None,
) -> Model:
    """A model of a training run, whose settings name its VAE and its tokenizer."""
    settings = parse(emoji.EmojiExperiment, values)
    if vae is None:
        world = emoji.load_world(settings)
    else:
        config = from_dict(settings.model)
        vae_config, vae_params = _read_vae(Path(vae), config)
        config = dataclasses.replace(config, vae=emoji.for_clips(vae_config, settings.data))
        words = _tokenizer(settings.data.vocabulary if tokenizer is None else tokenizer, config)
        world = World(config, vae_params, words, settings.data.size, settings.samples)
    if tokenizer is not None:
        world = dataclasses.replace(world, tokenizer=_tokenizer(tokenizer, world.config))
    return dataclasses.replace(world, vae_params=_on_device(world.vae_params)).model(params)


def _settings(source: Path, state: StateDict) -> Mapping[str, Any] | None:
    """The settings of the training run that this model came from; None: it came from no run."""
    if "settings" in state.metadata:
        return json.loads(state.metadata["settings"])
    arrays = open_arrays(source)
    return arrays.config if arrays is not None and "model" in arrays.config else None


def _tree(state: StateDict, shapes: Any, dtype: str, path: Path) -> dict[str, Any]:
    """Parameters on the device, read one at a time, as a nested dict.

    Raises:
      ValueError: missing, foreign or wrongly shaped parameters; all are listed.
    """
    wanted = flatten(shapes)
    if not any(name.startswith("vae.") for name in state.entries):
        wanted = {name: leaf for name, leaf in wanted.items() if not name.startswith("vae.")}
    _check(f"the model in {path}", wanted, state.entries)
    return unflatten(
        {name: jnp.asarray(state.read(name), dtype=dtype or None) for name in state.entries}
    )


def _read_vae(path: Path, config: TunaConfig) -> tuple[VAEConfig, Any]:
    """A VAE from a file of its own, in any layout, with its config and its parameters on the device."""
    if not path.exists():
        raise FileNotFoundError(f"no VAE at {path}")
    found, params = _open_vae(path, config)
    if found.latent_channels != config.vae.latent_channels:
        raise ValueError(
            f"the VAE in {path} has {found.latent_channels} latent channels and the model wants "
            f"{config.vae.latent_channels}"
        )
    return found, _on_device(params)


def _open_vae(path: Path, config: TunaConfig) -> tuple[VAEConfig, Any]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="numpy") as file:
            exported = "vae" in (file.metadata() or {})
        if exported:
            return load_image_vae(path)
    carried, state = weights.open_any(path)
    found, layout = config.vae if carried is None else carried.vae, sources.recognise(state)
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
            f"{path} holds no VAE that is known here; give one of experiments/emoji_vae.py, a converted model with a "
            f"VAE in it, or the Wan 2.2 VAE"
        )
    params = unflatten(flat)["vae"]
    shapes = jax.eval_shape(lambda: vae_model.init(found, jax.random.key(0)))
    _check(f"the VAE in {path}", flatten(shapes), flatten(params))
    return found, params


def _check(what: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises ValueError unless both have the same names and shapes; lists all that differ."""
    ours, theirs = (
        {name: tuple(leaf.shape) for name, leaf in side.items()} for side in (wanted, found)
    )
    try:
        table.compare(ours, theirs, ())
    except table.ConversionError as error:
        raise ValueError(f"{what} is not whole: {error}") from error


def _on_device(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def _tokenizer(given: Tokenizer | PathLike | None, config: TunaConfig) -> Tokenizer:
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
