"""Builds the mixture of an experiment from the streams in its config."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from tuna_jax.config import TunaConfig
from tuna_jax.data.invalid_examples import InvalidExamples, described
from tuna_jax.data.mixture.mixture import Mixture
from tuna_jax.data.mixture.scan import scan
from tuna_jax.data.mixture.stream import BatchShape, ExampleStream
from tuna_jax.data.sources import open as opening
from tuna_jax.data.sources.base import ExampleSource
from tuna_jax.data.sources.fields import FieldMap
from tuna_jax.data.sources.jsonl import Manifest
from tuna_jax.data.sources.precomputed_latents import LatentExamples
from tuna_jax.data.sources.stored_index import index_folder
from tuna_jax.data.sources.tfds import TfdsExamples
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.parallel.distributed import WHOLE, BatchPart
from tuna_jax.trainers.stream_config import (
    SOURCES,
    MultitaskData,
    StreamSettings,
    picture_sizes,
    stream_settings,
)
from tuna_jax.training.checkpoints import open_arrays
from tuna_jax.training.step import Heads

History = list[tuple[int, dict[str, float]]]


def open_source(
    settings: StreamSettings, index: str | os.PathLike[str] = "", verify: bool = False
) -> ExampleSource:
    """Opens the examples of a stream.

    Args:
      settings: of the stream.
      index: where indexes are kept, see `stored_index.index_folder`.
      verify: whether to compare the whole content of a manifest with its index.

    Raises:
      FileNotFoundError: the source does not exist.
      ValueError: the source is invalid.
    """
    if settings.latents:
        return LatentExamples(settings.latents)
    if settings.tfds:
        return TfdsExamples(settings.tfds, settings.split, settings.fields)
    if settings.source:
        return opening.open_source(
            settings.source,
            image_root=settings.image_root or None,
            fields=settings.fields,
            preset=settings.format,
            index=index,
            verify=verify,
        )
    fields = FieldMap(settings.fields, settings.format)
    root = settings.image_root or None
    return Manifest(settings.manifest, root, fields, index=index, verify=verify)


def example_stream(
    name: str,
    settings: StreamSettings,
    index: str | os.PathLike[str] = "",
    verify: bool = False,
) -> ExampleStream:
    """Opens a stream of examples.

    Args:
      name: of the stream, in `config.data.streams`.
      settings: its config.
      index, verify: see `open_source`.

    Raises:
      FileNotFoundError: the source does not exist; the message names the config key.
      ValueError: an invalid setting.
    """
    where = f"config.data.streams.{name}"
    try:
        source = open_source(settings, index, verify)
    except FileNotFoundError as error:
        key = next(key for key in SOURCES if getattr(settings, key))
        raise FileNotFoundError(f"{error}. Set {where}.{key}, or remove the stream") from error
    return ExampleStream(
        name=name,
        task=settings.task,  # pyright: ignore[reportArgumentType]  ExampleStream checks it
        source=source,
        weight=settings.weight,
        rows=settings.rows,
        lengths=settings.lengths,
        sizes=picture_sizes(settings, f"{where}.sizes"),
        slots=settings.slots or None,
        frames=settings.frames,
        fps=settings.fps or None,
        text_dropout=settings.text_dropout,
        source_dropout=settings.source_dropout,
        both_dropout=None if settings.both_dropout < 0 else settings.both_dropout,
        smallest=settings.smallest,
        hdr=settings.hdr,  # pyright: ignore[reportArgumentType]  ExampleStream checks it
        draws=settings.draws,
        part_rows=settings.part_rows,
        reduced_decode=settings.reduced_decode,
    )


def open_mixture(
    data: MultitaskData,
    config: TunaConfig,
    tokenizer: Tokenizer,
    invalid_examples: InvalidExamples | None = None,
    history: History | None = None,
    vae_fingerprint: str | None = None,
    scans: Mapping[str, str] | None = None,
    parts: Mapping[str, int] | None = None,
    *,
    part: BatchPart = WHOLE,
) -> Mixture:
    """The mixture of an experiment's streams; the last arguments are those of `data.mixture.Mixture`.

    This process reads `part` of every batch, by default all rows.
    """
    streams, directory, index = _opened(data)
    return Mixture(
        streams,
        tokenizer,
        seed=data.seed,
        invalid_examples=invalid_examples,
        history=history,
        vae_fingerprint=vae_fingerprint,
        spatial_factor=config.space.spatial_factor,
        temporal_factor=config.space.temporal_factor,
        process_index=part.index,
        process_count=part.count,
        directory=directory,
        index=index,
        threads=data.threads,
        scans=scans,
        parts=parts,
    )


def _opened(data: MultitaskData) -> tuple[list[ExampleStream], Path | None, str]:
    """The streams, the cache folder, and where indexes are kept."""
    directory = Path(data.cache) if data.cache else None
    # Indexes of sources in the cache folder of the run; 'with_data' and other folders as they are.
    index = data.index or (str(index_folder("", None, directory)) if directory else "")
    streams = [
        example_stream(name, stream, index, data.verify)
        for name, stream in stream_settings(data).items()
    ]
    return streams, directory, index


def scan_streams(data: MultitaskData, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """Scans the whole sources of an experiment's streams, together with all other processes that do.

    Yields:
      Of each stream its name, and how many of its examples can be used, in words.

    Raises:
      FileNotFoundError, ValueError: see `example_stream`.
    """
    streams, directory, index = _opened(data)
    for stream in streams:
        metadata = scan(
            stream.source,
            stream.task,
            tokenizer,
            smallest=stream.smallest,
            directory=directory,
            index=index,
            threads=data.threads,
            version="",
        )
        text = f"{len(metadata) - len(metadata.invalid)} of {len(metadata)} examples can be used"
        if metadata.invalid:
            text += f"; invalid: {described(metadata.invalid.values())}"
        yield stream.name, text


def programs(
    mixture: Mixture, streams: Mapping[str, StreamSettings]
) -> list[tuple[BatchShape, Heads]]:
    """Every (shape, heads) that a batch of the mixture can have; a program is compiled for each."""
    unique = {(shape, streams[name].heads): None for name, shape in mixture.kinds()}
    return list(unique)


def scans_of_run(workdir: Path) -> tuple[dict[str, str] | None, dict[str, int]]:
    """The versions of the scans with which the run in a workdir began, and the parts of its sources.

    They are `Mixture.scans` (None for a new run) and `Mixture.parts`.
    """
    saved = open_arrays(workdir)
    if saved is None:
        return None, {}
    stored = saved.config.get("mixture", {})
    return stored.get("scans", {}), stored.get("parts", {})


def weights_history(workdir: Path, weights: Mapping[str, float]) -> History:
    """The weights of the streams from the first batch on, as (first step, weights).

    A run that resumes with other weights keeps its earlier batches: the new weights are appended.
    """
    saved = open_arrays(workdir)
    stored = saved and saved.config.get("mixture", {}).get("history")
    if saved is None or not stored:
        return [(0, dict(weights))]
    step = int(saved.folder.name)
    history: History = [(begin, dict(old)) for begin, old in stored if begin < step or begin == 0]
    if history[-1][1] != dict(weights):
        history = [entry for entry in history if entry[0] < step] + [(step, dict(weights))]
    return history
