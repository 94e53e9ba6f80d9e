"""Latents of the frozen VAE, computed once, so that the encoder is not part of the training step."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, UInt8
from tqdm import tqdm

from tuna_jax.emoji.world.rendering import render
from tuna_jax.utils.atomic_io import cache_directory
from tuna_jax.utils.fingerprint import fingerprint

Encode = Callable[
    [UInt8[np.ndarray, "n *frames height width 3"]],
    tuple[Float[np.ndarray, "n t h w c"], Float[np.ndarray, "n t h w c"]],
]
Item = TypeVar("Item", covariant=True)


@runtime_checkable
class Source(Protocol[Item]):
    """Scenes, edits or clips by index, with the settings that they depend on."""

    def __getitem__(self, index: int, /) -> Item:
        """Item `index`."""
        ...

    def __len__(self) -> int:
        """Number of items."""
        ...

    def settings(self) -> dict[str, object]:
        """Everything that the items depend on."""
        ...


@dataclasses.dataclass(frozen=True)
class LatentPool(Generic[Item]):
    """The posterior of the first items of a source: element i belongs to `source[i]`.

    Attributes:
        source: the items.
        mean: normalised posterior mean, float16 or float32 [n, T, h, w, C].
        std: posterior standard deviation in the same units, same shape.
        pictures: renders an item again, for designs that see clean pixels (`TunaConfig.sees_pixels`); None for other
            designs. Rendering costs less than a millisecond, and storing the pictures would take hundreds of megabytes.
    """

    source: Source[Item]
    mean: Float[np.ndarray, "n t h w c"]
    std: Float[np.ndarray, "n t h w c"]
    pictures: Callable[[Any], UInt8[np.ndarray, "*frames height width 3"]] | None = None

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(T, h, w, C) of one item."""
        t, h, w, c = self.mean.shape[1:]
        return t, h, w, c

    def pixels(self, index: int) -> UInt8[np.ndarray, "slots 1 height width 3"] | None:
        """The clean pixels of item `index`, an image per slot; None for designs that see latents only."""
        if self.pictures is None:
            return None
        picture = self.pictures(self.source[index])
        return picture.reshape(-1, 1, *picture.shape[-3:])

    def sample(
        self, index: int, random: np.random.Generator, spread: float | Sequence[float] = 1.0
    ) -> Float32[np.ndarray, "t h w c"]:
        """A sample of the posterior of item `index`: mean + spread * std * noise.

        `spread` is one number for all frames, or one per frame.
        """
        scale = np.asarray(spread, np.float32).reshape(-1, 1, 1, 1)
        noise = scale * random.standard_normal(self.mean.shape[1:], np.float32)
        return self.mean[index].astype(np.float32) + self.std[index].astype(np.float32) * noise


def encode_pool(
    source: Source[Item],
    count: int,
    encode: Encode,
    key: str,
    *,
    pictures: Callable[[Any], UInt8[np.ndarray, "*frames height width 3"]] = render,
    directory: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    dtype: str = "float16",
    progress: bool = True,
) -> LatentPool[Item]:
    """Encodes the first `count` items, or reads them from the cache folder.

    The folder appears atomically when all files are complete. An interrupted call leaves nothing behind, and the
    next one starts again.

    Args:
        source: the scenes, edits or clips.
        count: number of items to encode.
        encode: uint8 images [n, H, W, 3], or [n, F, H, W, 3], -> (normalised mean, standard deviation), each
            [n, T, h, w, C].
            Every call gets exactly `batch_size` items (the last call is padded), so it compiles once.
        key: identifies the encoder: `fingerprint` of its weights and of everything else that its output depends on.
        pictures: renders an item to one image, or to several frames of one size. It is not part of the cache's
            key, so it must be determined by the source's settings.
        directory: the cache folder; see `atomic_io.cache_directory`.
        batch_size: items per call of `encode`.
        dtype: of the stored arrays; the rounding of float16 is far below the posterior's own spread.
        progress: show a progress bar.

    Returns:
        The pool; its arrays are memory-mapped.
    """
    if not 0 < count <= len(source):
        raise ValueError(
            f"count is {count}, which must be between 1 and {len(source)} for {source!r}"
        )
    settings = {"encoder": key, "scenes": source.settings(), "count": count, "dtype": dtype}
    folder = cache_directory(directory) / "latents" / fingerprint(settings)
    if not folder.is_dir():
        scratch = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:12]}")
        scratch.mkdir(parents=True)
        try:
            _write_pool(source, count, encode, pictures, scratch, batch_size, dtype, progress)
            (scratch / "settings.json").write_text(json.dumps(settings, indent=1))
            try:
                os.rename(scratch, folder)
            except OSError:
                if not folder.is_dir():  # Otherwise another process wrote the same content first.
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    mean, std = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("mean", "std"))
    return LatentPool(source, mean, std)


def _write_pool(
    source: Source[Any],
    count: int,
    encode: Encode,
    pictures: Callable[[Any], np.ndarray],
    folder: Path,
    batch_size: int,
    dtype: str,
    progress: bool,
) -> None:
    """Writes mean.npy and std.npy for the first `count` items into `folder`."""
    files: list[np.memmap] = []
    bar = tqdm(total=count, desc="encoding scenes", unit="image", disable=not progress)
    for start in range(0, count, batch_size):
        indices = [min(start + i, count - 1) for i in range(batch_size)]
        images = np.stack([pictures(source[i]) for i in indices])
        moments = [np.asarray(array) for array in encode(images)]
        used = min(batch_size, count - start)
        for name, array in zip(("mean", "std"), moments, strict=True):
            if array.ndim != 5 or len(array) != batch_size:
                raise ValueError(
                    f"encode returned {name} of shape {array.shape} for {batch_size} items; it must have shape "
                    f"[{batch_size}, T, h, w, C]"
                )
            if not np.isfinite(array).all():
                raise ValueError(
                    f"encode returned a {name} with values that are not finite; check the VAE's weights"
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
