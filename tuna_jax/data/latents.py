"""Latents of a frozen VAE, computed once: so that the encoder is not part of the training step."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8
from tqdm import tqdm

from tuna_jax.data.cache import cache_directory
from tuna_jax.data.rendering import Art, default_art, render
from tuna_jax.data.scenes import SceneSource

Encode = Callable[
    [UInt8[np.ndarray, "n height width 3"]],
    tuple[Float[np.ndarray, "n t h w c"], Float[np.ndarray, "n t h w c"]],
]


@dataclasses.dataclass(frozen=True)
class LatentPool:
    """The posterior of the first scenes of a source: element i belongs to `source[i]`.

    Attributes:
        source: where the scenes come from.
        mean: normalised posterior mean, float16 or float32 [n, T, h, w, C].
        std: posterior standard deviation in the same units, same shape.
    """

    source: SceneSource
    mean: Float[np.ndarray, "n t h w c"]
    std: Float[np.ndarray, "n t h w c"]

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(T, h, w, C) of one scene."""
        t, h, w, c = self.mean.shape[1:]
        return t, h, w, c

    def sample(
        self, index: int, random: np.random.Generator, spread: float = 1.0
    ) -> Float32[np.ndarray, "t h w c"]:
        """A draw from the posterior of scene `index`: mean + spread * std * noise."""
        noise = spread * random.standard_normal(self.mean.shape[1:], np.float32)
        return self.mean[index].astype(np.float32) + self.std[index].astype(np.float32) * noise


def fingerprint(tree: Any) -> str:
    """A short hash of a nested mapping of arrays (VAE weights), numbers and strings."""
    digest = hashlib.sha256()
    _update(digest, tree)
    return digest.hexdigest()[:16]


def _update(digest: Any, node: Any) -> None:
    if isinstance(node, Mapping):
        for key in sorted(node):
            digest.update(f"{{{key}".encode())
            _update(digest, node[key])
        digest.update(b"}")
    elif isinstance(node, (str, int, float, bool, type(None), bytes)):
        digest.update(repr(node).encode())
    elif isinstance(node, (list, tuple)):
        digest.update(f"[{len(node)}".encode())
        for item in node:
            _update(digest, item)
    else:
        array = np.asarray(node)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())


def encode_pool(
    source: SceneSource,
    count: int,
    encode: Encode,
    key: str,
    *,
    art: Art | None = None,
    directory: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    dtype: str = "float16",
    progress: bool = True,
) -> LatentPool:
    """Encodes the first `count` scenes, or finds them in the cache folder.

    The files appear in one step when all is done: an interrupted run leaves nothing half written, and
    the next one begins anew.

    Args:
        source: the scenes.
        count: how many of them.
        encode: uint8 images [n, H, W, 3] -> (normalised mean, standard deviation), each [n, T, h, w, C].
            Every call gets exactly `batch_size` images (the last is filled up), so it compiles once.
        key: names the encoder: `fingerprint` of its weights and whatever else its output depends on.
        art: the sprites; None takes the demo's.
        directory: the cache folder; see `cache.cache_directory`.
        batch_size: images a call.
        dtype: how to store; float16 loses far less than the posterior's own spread.
        progress: show a bar.

    Returns:
        The pool, its arrays mapped from disk.
    """
    if not 0 < count <= len(source):
        raise ValueError(f"count {count} of {source!r}; give 1 to {len(source)}")
    settings = {"encoder": key, "scenes": source.settings(), "count": count, "dtype": dtype}
    folder = cache_directory(directory) / "latents" / fingerprint(settings)
    if not folder.is_dir():
        scratch = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:12]}")
        scratch.mkdir(parents=True)
        try:
            _write_pool(
                source, count, encode, art or default_art(), scratch, batch_size, dtype, progress
            )
            (scratch / "settings.json").write_text(json.dumps(settings, indent=1))
            try:
                os.rename(scratch, folder)
            except OSError:
                if not folder.is_dir():  # else another process was first, with the same content
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    mean, std = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("mean", "std"))
    return LatentPool(source, mean, std)


def _write_pool(
    source: SceneSource,
    count: int,
    encode: Encode,
    art: Art,
    folder: Path,
    batch_size: int,
    dtype: str,
    progress: bool,
) -> None:
    """Writes mean.npy and std.npy for the first `count` scenes into `folder`."""
    files: list[np.memmap] = []
    bar = tqdm(total=count, desc="encoding scenes", unit="image", disable=not progress)
    for start in range(0, count, batch_size):
        indices = [min(start + i, count - 1) for i in range(batch_size)]
        images = np.stack([render(source[i], art) for i in indices])
        moments = [np.asarray(array) for array in encode(images)]
        used = min(batch_size, count - start)
        for name, array in zip(("mean", "std"), moments, strict=True):
            if array.ndim != 5 or len(array) != batch_size:
                raise ValueError(
                    f"encode returned {name} of shape {array.shape} for {batch_size} images; it must be "
                    f"[{batch_size}, T, h, w, C]"
                )
            if not np.isfinite(array).all():
                raise ValueError(
                    f"encode returned a {name} that is not finite; check the VAE's weights"
                )
        if not files:
            files = [
                np.lib.format.open_memmap(
                    folder / f"{name}.npy", "w+", np.dtype(dtype), (count, *array.shape[1:])
                )
                for name, array in zip(("mean", "std"), moments, strict=True)
            ]
        for file, array in zip(files, moments, strict=True):
            file[start : start + used] = array[:used]
        bar.update(used)
    bar.close()
    for file in files:
        file.flush()
