"""Precomputed latents in a folder of ArrayRecord shards, which `LatentExamples` reads as a source of examples.

    latents.json                       how they were computed: the VAE's fingerprint, sizes, frames, the manifest's
    digest 00007-of-00040.array_record        examples from 7 * shard_rows on: two records each, in the manifest's order
    00007-of-00040.json                written last: the shard's lines, their sizes, and the invalid examples

The first record of an example is JSON: its line of the manifest, the size in pixels, and the shape [n, T, h, w, C] of
the latents of its n images or videos. The second holds their posteriors' mean and standard deviation, in the units of
normalised latents, bfloat16 [2, n, T, h, w, C]. So text is read without the numbers.
They enter a batch unchanged, and the training step samples from them: their rounding error, 0.2 %, is below a
posterior's standard deviation, and 49,152 normal random numbers per row would cost a host more than everything else.
`data/precompute_latents.py` writes them.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import BFloat16

from tuna_jax.config import VAEConfig
from tuna_jax.data.invalid_examples import report_as_invalid
from tuna_jax.data.media.image import Encoded, Medium, Size
from tuna_jax.data.sources.array_record import open_array_record, read_records
from tuna_jax.data.sources.base import Example
from tuna_jax.data.sources.jsonl import make_example
from tuna_jax.data.sources.reader_pool import ReaderPool, close_reader
from tuna_jax.data.sources.shards import shard_name
from tuna_jax.data.sources.stored_index import smallest_type
from tuna_jax.sequence import Grid
from tuna_jax.utils.fingerprint import fingerprint
from tuna_jax.utils.text_files import read_text

SETTINGS_FILE = "latents.json"


def vae_fingerprint(config: VAEConfig, params: Mapping[str, Any]) -> str:
    """A hash that distinguishes VAEs: of the config, and the parameters as read from their file."""
    return fingerprint({"weights": params, "config": config.identity()})


class LatentExamples:
    """The examples of a folder of latents: a source like `Manifest`, without examples that could not be encoded.

    Reading is safe from several threads.

    Args:
        folder: what `python -m tuna_jax.encode_latents` wrote.

    Attributes:
        vae_fingerprint: the VAE's.
        sizes: image sizes that occur.
        frames, fps: of videos; see `ExampleStream`.
        grids: (size, frames) -> latent extent.
        channels: C.

    Raises:
        FileNotFoundError: there is no such folder, or shards are missing because the encoding did not finish.
        ValueError: no example in it could be encoded.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        if not (self.folder / SETTINGS_FILE).is_file():
            raise FileNotFoundError(
                f"{self.folder} is not a folder of latents (it has no {SETTINGS_FILE}); "
                "python -m tuna_jax.encode_latents writes one"
            )
        text = read_text(self.folder / SETTINGS_FILE)
        digest, settings = hashlib.sha256(text.encode()), json.loads(text)
        self.vae_fingerprint: str = settings["vae_fingerprint"]
        self.frames: int = settings["frames"]
        self.fps: float | None = settings["fps"]
        self._names = [shard_name(i, settings["shards"]) for i in range(settings["shards"])]
        files = [self.folder / f"{name}.json" for name in self._names]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(files)} shards are missing in {self.folder}, the first {missing[0]}; "
                "run the same command of encode_latents again; it continues where it stopped"
            )
        lines, counts, kinds = [], [], set()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for file, text in zip(files, pool.map(read_text, files), strict=True):
                digest.update(text.encode())
                listed = _listed(text, file)
                most = smallest_type(max(listed["lines"], default=0))
                lines.append(np.array(listed["lines"], most))
                counts.append(listed["rows"])
                kinds |= {tuple(kind) for kind in listed["latents"]}
        if not sum(counts):
            raise ValueError(
                f"none of the examples in {self.folder} could be encoded: see 'bad' in {files[0]}"
            )
        self._lines, self._digest = np.concatenate(lines), digest.hexdigest()
        self._begins = np.concatenate([[0], np.cumsum(counts)])
        self.sizes = tuple(sorted({Size(h, w) for h, w, *_ in kinds}))
        self.grids = {(Size(h, w), f): Grid(*grid) for h, w, f, *grid, _ in kinds}
        (self.channels,) = {kind[-1] for kind in kinds}
        self._pool: ReaderPool[Any] = ReaderPool(open_array_record, close_reader)

    @property
    def name(self) -> str:
        """Its name in lists of invalid examples."""
        return str(self.folder)

    @property
    def location(self) -> Path:
        """Its folder, for indexes that are kept with the data."""
        return self.folder

    @property
    def identity(self) -> str:
        """Changes when the latents do."""
        return self._digest

    def __len__(self) -> int:
        return len(self._lines)

    def line(self, index: int) -> int:
        """The line of an example in the manifest, counted from 1."""
        return int(self._lines[index])

    def __getitem__(self, index: int) -> Example:
        """An example; its media are `Encoded`, which read their numbers on demand."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {self.name}, which has {len(self)}")
        with report_as_invalid(self.name, self.line(index)):
            return self._read(index)

    def _read(self, index: int) -> Example:
        shard = int(np.searchsorted(self._begins, index, side="right")) - 1
        at = 2 * (index - int(self._begins[shard]))
        path = self.folder / f"{self._names[shard]}.array_record"
        header = json.loads(self._record(path, at))
        size, shape = Size(*header["size"]), header["shape"]

        @functools.cache
        def moments() -> BFloat16[np.ndarray, "2 n t h w c"]:
            content = self._record(path, at + 1)
            return np.frombuffer(content, ml_dtypes.bfloat16).reshape(2, *shape)

        slots = iter(range(shape[0]))

        def medium(key: str, value: Any) -> Medium:
            slot = next(slots)
            return Encoded(size, lambda: moments()[:, slot])

        row = json.loads(header["row"].removeprefix("\ufeff"))  # Earlier versions kept the mark.
        return make_example(row, medium, self.name, self.line(index))

    def _record(self, path: Path, number: int) -> bytes:
        with self._pool.use(str(path)) as reader:
            return read_records(reader, path, [number])[0]


def _listed(text: str, file: Path) -> dict[str, Any]:
    """What a shard's JSON file lists; ValueError names the file and the mend if it is damaged."""
    try:
        listed = json.loads(text)
        if len(listed["lines"]) != listed["rows"]:
            raise ValueError(f"{listed['rows']} rows of {len(listed['lines'])} lines")
        return {key: listed[key] for key in ("lines", "rows", "latents")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged ({type(error).__name__}: {error}); remove it, and run the same command of "
            "encode_latents again, which writes the shard again"
        ) from error
