"""Initial parameters of a new run from files: another run or model, or a pre-trained representation encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tuna_jax.config import TunaConfig
from tuna_jax.conversion import checkpoint_source
from tuna_jax.conversion.encoder_file import Encoder, load_encoder
from tuna_jax.inference.components import check_complete, check_finite, read_parameters
from tuna_jax.models import tuna
from tuna_jax.training import state
from tuna_jax.training.checkpoints import finished_checkpoints
from tuna_jax.utils import shipped
from tuna_jax.utils.param_tree import flatten

InitialParams = Callable[[Any, Any], Any]
"""`(shapes, shardings) -> params`, as `training.loop.train` takes it."""


def from_run(path: str, config: TunaConfig, workdir: str | Path) -> InitialParams | None:
    """The parameters of another run or model (`config.init_from`).

    Names and shapes are checked at once if the run in `workdir` is new; a resumed run does not need the files.

    Args:
      path: a run's workdir or checkpoint, `model.safetensors`, a folder that `convert from_torch` wrote, or the name of
        a model in the package; '': none.
      config: the model of the new run.
      workdir: folder of the new run.

    Returns:
      The function that reads them, or None without a path.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: it is another model; every parameter that differs is listed.
    """
    if not path:
        return None
    path = str(shipped.model_path(path))
    if _is_new(workdir):
        try:
            if not Path(path).exists():
                raise FileNotFoundError(
                    f"no parameters at {path}; name a run's workdir, or a model that `convert from_torch` wrote"
                )
            entries = checkpoint_source.open_parameters(path)[1].entries
            network = {name: leaf for name, leaf in entries.items() if not name.startswith("vae.")}
            check_complete(f"the model in {path}", flatten(tuna.shapes(config)), network)
        except (FileNotFoundError, ValueError) as error:
            raise _named("config.init_from", error) from error
    return lambda shapes, shardings: read_parameters(path, shapes, shardings)


def with_encoder(
    path: str, config: TunaConfig, workdir: str | Path, *, seed: int, latents: str
) -> InitialParams | None:
    """A pre-trained representation encoder in a model that is otherwise initialised as usual (`config.init_encoder`).

    All other parameters are those of a run with the same seed and without `init_encoder`.

    Args:
      path: a file that `conversion.encoder_file.export_encoder` wrote; '': none.
      config, workdir: as for `from_run`.
      seed: of the new run, `config.seed`.
      latents: identifies the VAE of the new run, as `Encoder.latents` does.

    Returns:
      The function that makes the parameters, or None without a path.

    Raises:
      FileNotFoundError: there is no file at `path`.
      ValueError: the model's design has no encoder, or the file has another encoder, one of another VAE's latents, or
        numbers that are not finite.
    """
    if not path:
        return None
    if _is_new(workdir):
        try:
            _read_encoder(path, config, latents)
        except (FileNotFoundError, ValueError) as error:
            raise _named("config.init_encoder", error) from error

    def make(shapes: Any, shardings: Any) -> Any:
        del shapes
        encoder = _read_encoder(path, config, latents)
        key, _ = state.keys(seed)
        params = jax.jit(lambda: tuna.init(config, key), out_shardings=shardings)()
        params["representation"] = jax.tree.map(
            lambda leaf, sharding: jax.make_array_from_callback(
                leaf.shape, sharding, lambda index: leaf[index]
            ),
            encoder.params,
            shardings["representation"],
        )
        return params

    return make


def _read_encoder(path: str, config: TunaConfig, latents: str) -> Encoder:
    """The encoder, checked to fit the model."""
    if not config.has_encoder:
        raise ValueError(
            f"config.model.design is {config.design!r}, which has no representation encoder; leave config.init_encoder "
            "empty"
        )
    encoder = load_encoder(path)
    pixels = config.image_patches if config.sees_pixels else None
    values = {
        "channels": (encoder.channels, (pixels or config.space).latent_channels),
        **{
            f"representation.{field.name}": (
                getattr(encoder.config, field.name),
                getattr(config.representation, field.name),
            )
            for field in dataclasses.fields(encoder.config)
        },
    }
    differ = [
        f"{key} {ours} in place of {own}" for key, (ours, own) in values.items() if ours != own
    ]
    if differ:
        raise ValueError(
            f"the encoder in {path} does not fit config.model: it has {', '.join(differ)}; train one of this size, or "
            "change config.model.representation"
        )
    if encoder.latents and latents and encoder.latents != latents:
        raise ValueError(
            f"the encoder in {path} was trained on latents of another VAE than config.vae; name that VAE, or train an "
            "encoder with this one"
        )
    arrays: dict[str, np.ndarray] = flatten(encoder.params)
    check_finite(f"the encoder in {path}", arrays)
    return encoder


def _is_new(workdir: str | Path) -> bool:
    """Whether a run starts in this folder; otherwise it resumes from a checkpoint."""
    folder = Path(workdir) / "checkpoints"
    return not (folder.is_dir() and finished_checkpoints(folder))


def _named(key: str, error: Exception) -> Exception:
    """The same kind of error, whose message starts with the key."""
    kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
    return kind(f"{key}: {error}")
