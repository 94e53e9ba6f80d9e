"""Opens a source by its name: what it is follows from the files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tuna_jax.data.sources import array_record, parquet, webdataset
from tuna_jax.data.sources.array_record import ArrayRecordExamples
from tuna_jax.data.sources.base import ExampleSource
from tuna_jax.data.sources.fields import FieldMap
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.sources.parquet import ParquetExamples
from tuna_jax.data.sources.precomputed_latents import SETTINGS_FILE, LatentExamples
from tuna_jax.data.sources.rows import ShardedRows
from tuna_jax.data.sources.stored_index import index_folder
from tuna_jax.data.sources.tfds import TfdsExamples
from tuna_jax.data.sources.verified import verify_files
from tuna_jax.data.sources.webdataset import WebDatasetExamples
from tuna_jax.utils.buckets import is_address

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson", ".jsonlines")
_KINDS = {
    "parquet": parquet.SUFFIXES,
    "webdataset": webdataset.SUFFIXES,
    "array_record": array_record.SUFFIXES,
    "json": JSON_SUFFIXES,
}


def kind_of(source: str) -> str:
    """'json', 'parquet', 'webdataset', 'array_record', 'latents' or 'tfds', by the names of a source's files.

    Raises:
        FileNotFoundError: there is nothing of the name.
        ValueError: the files say nothing, or a folder has several kinds of them; the message says what is possible.
    """
    path = Path(source)
    if path.is_dir():
        if (path / SETTINGS_FILE).is_file():
            return "latents"
        if (path / "dataset_info.json").is_file():
            return "tfds"
        names = [
            name for _, _, files in os.walk(path) for name in files if not name.startswith(".")
        ]
        found = [
            kind
            for kind, suffixes in _KINDS.items()
            if kind != "json" and any(name.endswith(suffixes) for name in names)
        ]
        if len(found) == 1:
            return found[0]
        has = f"files of {' and '.join(found)}" if found else "no data files"
        raise ValueError(
            f"the folder {source} has {has}; name the files of one kind, for example {source}/*.parquet"
        )
    named = source.rstrip("},").lower()
    for kind, suffixes in _KINDS.items():
        if named.endswith(suffixes):
            return kind
    if not path.exists() and not any(c in source for c in "*?[{,"):
        raise FileNotFoundError(f"the source {source} does not exist")
    known = ", ".join(suffix for suffixes in _KINDS.values() for suffix in suffixes)
    raise ValueError(f"the source {source} is of no known kind; the names of files end in {known}")


def open_source(
    source: str | os.PathLike[str],
    *,
    image_root: str | os.PathLike[str] | None = None,
    fields: Mapping[str, str] | None = None,
    preset: str = "",
    split: str = "train",
    index: str | os.PathLike[str] | None = None,
    verify: bool = False,
) -> ExampleSource:
    """The examples of a file, a folder or a pattern.

    Args:
        source: JSON lines or a JSON array, Parquet, WebDataset tars, ArrayRecord of `tuna-jax data convert`, latents
            of `tuna-jax encode-latents`, or the folder of a prepared TFDS data set.
        image_root: where names of files in rows begin; None takes the folder of the source.
        fields: key map (fields.py).
        preset: a name of `fields.PRESETS`, or ''.
        split: of a TFDS data set.
        index: where indexes are kept (stored_index.index_folder).
        verify: whether to compare the whole content of files with what it was: of large JSON lines when they were
            indexed, of Parquet, tars and ArrayRecord when they were verified for the first time.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is of no known kind, or cannot be used, or is not what was indexed; the message says why.
    """
    name, map_of = os.fspath(source), FieldMap(fields, preset)
    kind = kind_of(name)
    if kind != "json" and is_address(name):
        raise ValueError(
            f"{name}: only JSON lines and arrays, with the images and videos that they name, are read from an address; "
            "mount the bucket (docs/pods.md), and pass the folder of the mount"
        )
    if kind == "latents":
        return LatentExamples(name)
    if kind == "tfds":
        return TfdsExamples(name, split, fields or {})
    if kind == "json":
        return Manifest(name, image_root, map_of, index=index, verify=verify)
    if kind == "parquet":
        rows: ShardedRows = ParquetExamples(name, map_of, image_root)
    elif kind == "webdataset":
        rows = WebDatasetExamples(name, map_of, image_root, index=index)
    else:
        rows = ArrayRecordExamples(name, map_of, image_root)
    if verify:
        files = [shard.path for shard in rows.shards]
        verify_files(files, rows.identity, index_folder(index, rows.location))
    return rows
