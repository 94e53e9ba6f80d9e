"""Features of images: a model's unified representation, those of an external extractor, and files of either."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8
from PIL import Image
from safetensors import SafetensorError, safe_open

from tuna_jax.config import TunaConfig
from tuna_jax.data.media.image import load_image, load_rgb
from tuna_jax.inference import batching
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.models import tuna
from tuna_jax.parallel import distributed
from tuna_jax.parallel.leader import on_all_processes
from tuna_jax.utils import safetensors_files
from tuna_jax.utils.atomic_io import atomic_file

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
KEY = "features"

# Upright RGB images of any size -> features [images, width].
Extractor = Callable[[list[Image.Image]], Any]


def pictures_in(folder: str | Path, count: int | None = None) -> list[Path]:
    """The image files of a folder and its subfolders, ordered by path; the first `count` of them.

    Hidden files and folders, such as macOS's `._x.jpg`, are left out.

    Raises:
      FileNotFoundError: there is no such folder, or no image in it.
    """
    folder = Path(folder)
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not paths:
        raise FileNotFoundError(f"{folder} has no images ({', '.join(SUFFIXES)})")
    return paths[:count]


Failures = dict[Path, str]
"""By the path of an image: why it cannot be used."""


def read_all(
    paths: Sequence[Path], size: tuple[int, int], failures: Failures | None = None
) -> UInt8[np.ndarray, "n h w 3"]:
    """Images of files, scaled and cropped to (height, width).

    Args:
      paths: the files.
      size: (height, width) in pixels.
      failures: files that cannot be read are added here and left out; None raises the first reason.

    Raises:
      ValueError: no file can be read; the first is named with the reason.
    """
    images = []
    for path in paths:
        try:
            images.append(load_image(path, size))
        except (ValueError, OSError) as error:
            _fail(path, error, failures)
    return np.stack(_some(images, failures))


def _fail(path: Path, error: Exception, failures: Failures | None) -> None:
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if str(path) in text else f"{path}: {text}"
    if failures is None:
        raise ValueError(text) from error
    failures[path] = text


def _some(images: list[Any], failures: Failures | None) -> list[Any]:
    if not images:
        first = next(iter((failures or {}).values()), "there are no images")
        raise ValueError(f"no image can be read; the first: {first}")
    return images


@on_all_processes
def reconstruct(model: Tuna, images: UInt8[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "n h w 3"]:
    """Images reconstructed by the model's VAE, from the posterior's mean."""

    def run(part: np.ndarray) -> np.ndarray:
        mean, _ = batching.encode(model.config, model.vae_params, part[:, None], model.sharding)
        clips = batching.decode(model.config, model.vae_params, mean, model.sharding)
        return distributed.to_host(clips)[:, 0]

    return batching.in_chunks(run, images, _rows_per_chunk(model, images), model.batch_parts)


@on_all_processes
def unified(model: Tuna, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n width"]:
    """The unified visual representation z (model.md section 4) of clean images: its mean over tokens, float32."""

    def run(part: np.ndarray) -> np.ndarray:
        latents, _ = batching.encode(model.config, model.vae_params, part[:, None], model.sharding)
        tokens = _tokens(model.config, model.params, latents[:, None])
        return np.asarray(distributed.to_host(tokens), np.float32)

    return batching.in_chunks(run, images, _rows_per_chunk(model, images), model.batch_parts)


@functools.partial(jax.jit, static_argnums=0)
def _tokens(
    config: TunaConfig, params: Any, latents: Float[Any, "b n t h w c"]
) -> Float[Array, "b width"]:
    tokens = tuna.bind(config, params).visual_tokens(latents)
    return tokens.astype("float32").mean((1, 2))


def _rows_per_chunk(model: Tuna, images: np.ndarray) -> int:
    shape = model.config.space.latent_shape(1, *images.shape[1:3])
    return batching.rows_per_chunk(int(np.prod(shape[:3])))


def extracted(
    extractor: Extractor,
    paths: Sequence[Path],
    batch: int = 32,
    failures: Failures | None = None,
) -> Float[np.ndarray, "n width"]:
    """An extractor's features of image files, computed `batch` files at a time.

    Args:
      extractor: from images to features.
      paths: the files.
      batch: files at a time.
      failures: files that cannot be read, or whose features are not finite, are added here and left out; None raises
        the first reason.

    Raises:
      ValueError: it does not return one row of numbers per image, or no file can be used.
    """
    parts = []
    for start in range(0, len(paths), batch):
        images, read = [], []
        for path in paths[start : start + batch]:
            try:
                images.append(load_rgb(path))
            except MemoryError:
                raise
            except Exception as error:  # Decoders raise almost anything.
                _fail(path, error, failures)
            else:
                read.append(path)
        if not images:
            continue
        features = np.asarray(extractor(images), np.float32)
        if features.ndim != 2 or len(features) != len(images):
            raise ValueError(
                f"the extractor returned shape {list(features.shape)} for {len(images)} images; it must be "
                "[images, width]"
            )
        parts.append(features[finite_features(features, read, failures)])
    return np.concatenate(_some([part for part in parts if len(part)], failures))


def finite_features(
    features: Float[np.ndarray, "n width"], paths: Sequence[Path], failures: Failures | None
) -> Bool[np.ndarray, " n"]:
    """Which rows are finite; the images of the others are added to `failures`, or raise if it is None."""
    finite = np.asarray(np.isfinite(features).all(1))
    for row in np.flatnonzero(~finite).tolist():
        _fail(paths[row], ValueError("its features are not finite"), failures)
    return finite


def load_extractor(named: str) -> Extractor:
    """A user's extractor: `module:function` or `file.py:function`.

    Raises:
      ValueError: it has another form, or there is no such function.
      FileNotFoundError, ImportError: the file or module does not exist.
    """
    where, _, name = named.rpartition(":")
    if not where or not name:
        raise ValueError(f"{named!r} is not an extractor; give module:function or file.py:function")
    if where.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(where).stem, where)
        if spec is None or spec.loader is None or not Path(where).is_file():
            raise FileNotFoundError(f"no file at {where}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(where)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{where} has no function {name!r}")
    return function


def write(path: str | Path, features: Float[np.ndarray, "n width"], names: Sequence[str]) -> Path:
    """Writes features as `.npy`, or as `.safetensors` under KEY with the names of the images.

    Raises:
      ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix not in (".npy", ".safetensors"):
        raise ValueError(f"{path}: features are written as .npy or .safetensors")
    if path.suffix == ".npy":
        with atomic_file(path) as scratch, scratch.open("wb") as file:
            np.save(file, features)
    else:
        safetensors_files.write(path, {KEY: features}, {"names": json.dumps(list(names))})
    return path


def read(path: str | Path) -> tuple[Float[np.ndarray, "n width"], list[str] | None]:
    """Features of a file, float32 [rows, width], and the names of the images, if the file has them.

    Features of tokens, [rows, tokens, width], are averaged over tokens.

    Args:
      path: `.npy`, or `.safetensors` with one tensor or one called `features`; `FILE.safetensors:NAME` names another.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: the file cannot be read, or holds no features.
    """
    named, key = str(path), ""
    if ":" in named and not Path(named).exists():
        named, _, key = named.rpartition(":")
    file = Path(named)
    if not file.is_file():
        raise FileNotFoundError(f"no file of features at {path}")
    try:
        array, names = (
            _tensor(file, key) if file.suffix == ".safetensors" else (np.load(file), None)
        )
    except (SafetensorError, OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as features: {error}") from error
    if array.ndim == 3:
        array = array.mean(1)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"{path} holds {array.dtype} {list(array.shape)}; it must be floating point [rows, width]"
        )
    return array.astype(np.float32), names


def _tensor(file: Path, key: str) -> tuple[np.ndarray, list[str] | None]:
    with safe_open(file, "numpy") as opened:
        keys = list(opened.keys())
        key = key or (keys[0] if len(keys) == 1 else KEY)
        if key not in keys:
            raise ValueError(f"it has no tensor {key!r}, but {', '.join(keys)}")
        names = (opened.metadata() or {}).get("names")
        return opened.get_tensor(key), json.loads(names) if names else None
