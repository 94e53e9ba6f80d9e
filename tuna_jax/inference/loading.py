"""`tuna_jax.Tuna`: a trained or converted model, read from disk and ready to draw, edit, answer and chat."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from tuna_jax.conversion import checkpoint_source, convert_checkpoint
from tuna_jax.conversion.checkpoint_source import settings_of
from tuna_jax.conversion.readers import StateDict
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.inference.components import PathLike, check_whole, read_tokenizer, read_vae
from tuna_jax.inference.exported_sampler import read as read_programs
from tuna_jax.inference.pipeline import Model
from tuna_jax.inference.run_record import of_run
from tuna_jax.training.weights_file import MODEL_FILE
from tuna_jax.utils.param_tree import flatten, unflatten


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
        programs: PathLike | None = None,
    ) -> Tuna:
        """Reads a model.

        Args:
          path: a training run's workdir, its `model.safetensors` or a checkpoint of it; or what `convert from_torch`
            wrote, as safetensors (a file or a folder) or Orbax.
          vae: the VAE, where the model has none in it or another is wanted: a file of `experiments/emoji/vae.py`, a
            converted model with a VAE in it, or the Wan 2.2 VAE in its own names or diffusers'.
          tokenizer: a tokenizer; or the folder of a Hugging Face one; or the name or file of a compact vocabulary. A
            run names its own; else the full Qwen2.5 tokenizer is taken.
          dtype: 'float32' or 'bfloat16' to hold parameters in; empty keeps each as it is stored.
          programs: a folder that `python -m tuna_jax.export` wrote for this model; see `inference/exported_sampler.py`.

        Raises:
          FileNotFoundError: nothing there.
          ValueError: not a model, no VAE in it and none given, a VAE, tokenizer or programs that do not fit.
        """
        found = cls._load(path, vae, tokenizer, dtype)
        if programs is None:
            return found
        known = read_programs(programs, found.config, found.params, found.vae_params)
        return dataclasses.replace(found, programs=known)

    @classmethod
    def _load(
        cls,
        path: PathLike,
        vae: PathLike | None,
        tokenizer: Tokenizer | PathLike | None,
        dtype: str,
    ) -> Tuna:
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(
                f"no trained model at {path}; `python -m tuna_jax.train` writes one when a run ends or is stopped, "
                f"and `python -m tuna_jax.convert from_torch` makes one of a PyTorch checkpoint"
            )
        if dtype and dtype not in convert_checkpoint.DTYPES:
            raise ValueError(f"dtype is {dtype!r}; choose {' or '.join(convert_checkpoint.DTYPES)}")
        exported = path / MODEL_FILE
        source = exported if path.is_dir() and exported.is_file() else path
        config, state = checkpoint_source.open_parameters(source)
        params = _tree(state, convert_checkpoint.parameter_shapes(config), dtype, path)
        found = params.pop("vae", None)
        settings = settings_of(source, state)
        if settings is not None:
            own = of_run(settings, params, vae, tokenizer)
            return cls(
                **{field.name: getattr(own, field.name) for field in dataclasses.fields(own)}
            )
        if vae is not None:
            vae_config, found = read_vae(Path(vae), config)
            config = dataclasses.replace(config, vae=vae_config)
        if found is None:
            raise ValueError(f"{path} has no VAE in it; name one: --vae=FILE, or Tuna.load(vae=)")
        words = read_tokenizer(tokenizer, config)
        side = config.representation.grid * config.vae.spatial_factor
        return cls(config, params, found, words, (side, side))


def _tree(state: StateDict, shapes: Any, dtype: str, path: Path) -> dict[str, Any]:
    """Parameters on the device, read one at a time, as a nested dict.

    Raises:
      ValueError: missing, foreign or wrongly shaped parameters; all are listed.
    """
    wanted = flatten(shapes)
    if not any(name.startswith("vae.") for name in state.entries):
        wanted = {name: leaf for name, leaf in wanted.items() if not name.startswith("vae.")}
    check_whole(f"the model in {path}", wanted, state.entries)
    return unflatten(
        {name: jnp.asarray(state.read(name), dtype=dtype or None) for name in state.entries}
    )
