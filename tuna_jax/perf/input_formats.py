"""The pictures of `perf/input_files.py` in every format, and the loop of the package `webdataset`."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tuna_jax.data.convert_source import convert
from tuna_jax.data.media.image import Size
from tuna_jax.data.sources.base import ExampleSource
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.sources.open import open_source
from tuna_jax.perf.input_files import WORDS

GROUP_ROWS = 4
"""Rows of a row group of the Parquet file: a row is read with its group."""


def covered(image: Image.Image, size: Size) -> UInt8[np.ndarray, "h w 3"]:
    """Scales an image until it covers a size, and crops it."""
    scale = min(image.width / size.width, image.height / size.height)
    width, height = size.width * scale, size.height * scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, left + width, top + height)
    return np.asarray(
        image.resize((size.width, size.height), Image.Resampling.BICUBIC, box=box), np.uint8
    )


def has(package: str) -> bool:
    """Whether an optional package is installed."""
    return importlib.util.find_spec(package) is not None


def json_array(folder: Path, size: Size, paths: list[Path]) -> ExampleSource:
    """The pictures as a JSON array, as LLaVA's own files are."""
    rows = [{"image": f"{size}/{path.name}", "caption": WORDS} for path in paths]
    file = folder / f"{size}.json"
    file.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return open_source(file)


def parquet(folder: Path, size: Size, paths: list[Path]) -> ExampleSource:
    """The pictures' bytes in a Parquet file of small row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {"image": [path.read_bytes() for path in paths], "caption": [WORDS] * len(paths)}
    )
    pq.write_table(table, folder / f"{size}.parquet", row_group_size=GROUP_ROWS)
    return open_source(folder / f"{size}.parquet")


def array_record(folder: Path, manifest: Manifest, size: Size) -> ExampleSource:
    """The pictures as `tuna-jax data convert` writes them."""
    convert(manifest, folder / f"{size}_records", progress=False)
    return open_source(folder / f"{size}_records")


def tar(folder: Path, size: Size, paths: list[Path]) -> Path:
    """The pictures as a tar for WebDataset."""
    file = folder / f"{size}.tar"
    with tarfile.open(file, "w") as archive:
        for number, path in enumerate(paths):
            for suffix, content in (("jpg", path.read_bytes()), ("txt", WORDS.encode())):
                entry = tarfile.TarInfo(f"{number:06d}.{suffix}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return file


def webdataset_picture(path: Path, size: Size) -> UInt8[np.ndarray, "h w 3"]:
    """The next picture of a tar as the package `webdataset` reads and decodes it, scaled and cropped."""
    return covered(next(_endless(path))["jpg"], size)


@functools.cache
def _endless(path: Path) -> Iterator[dict[str, Any]]:
    webdataset = importlib.import_module("webdataset")  # Optional, and not typed.
    samples = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
    return iter(samples.decode("pilrgb").repeat())
