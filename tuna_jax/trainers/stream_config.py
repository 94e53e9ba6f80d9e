"""Configuration of the streams of a multitask experiment, and the shapes of their batches."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from tuna_jax.config import PixelConfig, VAEConfig
from tuna_jax.data.media.image import SMALLEST_SIDE, Size
from tuna_jax.data.mixture.bucketing import named_sizes
from tuna_jax.data.mixture.stream import UNUSED_SIZE, BatchShape
from tuna_jax.data.mixture.tokenize_example import (
    ACCEPTS,
    GENERATION_TASKS,
    least_slots,
    least_spans,
)
from tuna_jax.sequence import Grid
from tuna_jax.training.step import Heads
from tuna_jax.utils.config_parsing import defaults, parse

SOURCES = ("manifest", "latents", "tfds", "source")
"""The keys of a stream that name its examples; it has one of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """A stream in `config.data.streams`; its key is its name in logs.

    Attributes:
      task: 't2i', 'edit', 'understand', 'chat', 't2v', 'i2v' or 'video_understand' (data/mixture/tokenize_example.py).
      manifest: the JSONL file (data/sources/jsonl.py describes the formats).
      image_root: folder of its relative paths; empty takes the manifest's folder.
      latents: instead of a manifest, the folder that `python -m tuna_jax.encode_latents` wrote for it.
      tfds: instead of a manifest, a data set of TensorFlow Datasets: its name, or the folder of a prepared one.
      source: instead of a manifest, a file, a folder or a pattern of JSON lines or arrays, Parquet, WebDataset tars or
        ArrayRecord; what it is follows from the names of the files (data/sources/open.py).
      split: of the TFDS data set.
      fields: key map: keys of a manifest to those of the source, to columns, or to features of a TFDS data set
        (data/sources/fields.py).
      format: key map of public data: 'tuna-2', 'llava', 'sharegpt', 'bagel' or 'show-o2'; of a manifest or a source.
      weight: share of the batches, relative to the other streams' weights. It may change when a run resumes.
      rows: rows per batch, over all processes together.
      sizes: image sizes, each 'HEIGHTxWIDTH', or '512' or '1024' for the five sizes of TUNA at that resolution.
      lengths: sequence lengths in tokens, ascending.
      slots: numbers of images that a row may have, ascending; empty: 2 for edits (a source and the target; 3 are two
        sources) and for 'i2v' (the first frame and the clip), otherwise 1.
      frames: frames per clip, 1 + 4k.
      fps: frames per second that are sampled from a clip; 0 spreads the frames over the whole clip.
      text_dropout, source_dropout: how often the text, and an edit's sources or the first frame of 'i2v', are left out,
        for classifier-free guidance; the two are independent.
      both_dropout: how often both are left out; the three then exclude each other. Negative: they are independent.
      smallest: smallest side of an image, in pixels.
      hdr: 'tone_map' converts images and clips in high dynamic range (PQ and HLG) to sRGB; 'refuse' lists them as
        invalid examples.
      draws: whether images by the assistant are generated; the flow head then runs on conversations. Otherwise they are
        clean, and a conversation in which no learned text follows them is invalid.
      part_rows: trains on the first examples of the source, as many as this, so that only they are scanned before the
        first step. 0 takes all of them, or, when a run resumes, those that it began with; -1 takes all of them also
        then.
      reduced_decode: decodes a large JPEG at the smallest fraction (1/2, 1/4, 1/8) that covers the stream's size, in
        place of twice the size: up to twice as fast, with slightly other pixels than inference and evaluation see.
    """

    task: str
    manifest: str = ""
    image_root: str = ""
    latents: str = ""
    tfds: str = ""
    source: str = ""
    split: str = "train"
    fields: dict = dataclasses.field(default_factory=dict)
    format: str = ""
    weight: float = 1.0
    rows: int = 8
    sizes: tuple[str, ...] = ("512",)
    lengths: tuple[int, ...] = (1280,)
    slots: tuple[int, ...] = ()
    frames: int = 1
    fps: float = 0.0
    text_dropout: float = 0.1
    source_dropout: float = 0.0
    both_dropout: float = -1.0
    smallest: int = SMALLEST_SIDE
    hdr: str = "tone_map"
    draws: bool = False
    part_rows: int = 0
    reduced_decode: bool = False

    def __post_init__(self) -> None:
        if self.task not in ACCEPTS:
            raise ValueError(f"task {self.task!r} is not one of {', '.join(ACCEPTS)}")
        sources = [key for key in SOURCES if getattr(self, key)]
        if len(sources) != 1:
            raise ValueError(
                f"a stream of task {self.task!r} has {' and '.join(sources) or 'no source'}; it requires one of "
                f"{', '.join(SOURCES)}"
            )
        if self.format and sources[0] in ("latents", "tfds"):
            raise ValueError(
                f"a stream of task {self.task!r} has format {self.format!r}, which is of rows of a manifest or a "
                f"source, and its {sources[0]} have none; remove it"
            )

    @property
    def heads(self) -> Heads:
        """The heads that run on a batch of this stream."""
        if self.task in GENERATION_TASKS:
            return Heads(None, 0)
        return Heads(None if self.draws else 0, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultitaskData:
    """The data of a multitask experiment.

    Attributes:
      streams: name -> the keys of `StreamSettings`.
      held_out: name -> keys of `StreamSettings` that differ from the stream of that name, at least its source; what
        `tuna-jax evaluate` measures losses on. Empty: it takes the training streams, and says so.
      seed: of the order of examples and of all other random choices.
      vocabulary: empty takes the full vocabulary of Qwen2.5; otherwise the name or file of a compact one, or a Hugging
        Face folder.
      max_invalid_fraction: largest share of invalid examples; above it the run stops. A source is judged when it is
        scanned, at the start, however few examples it has; one invalid example never stops a run, unless this is 0.
      min_examples_to_judge: number of examples that must be read for batches before the share among them is checked.
      cache: folder of prepared data; empty takes $TUNA_JAX_DATA, or else ~/.cache/tuna_jax.
      index: folder of the indexes of the sources and of their scans, which all processes and hosts share that see it;
        'with_data' is a folder `.tuna_jax` next to each source. Empty takes a folder in the cache.
      verify: compares the whole content of files with what it was (open_source says when), not only size, time and
        samples of it.
      threads: threads per process that makes batches.
      workers: processes that make batches; 0 makes them in the training process.
      ahead: number of batches to prepare in advance.
    """

    streams: dict = dataclasses.field(default_factory=dict)
    held_out: dict = dataclasses.field(default_factory=dict)
    seed: int = 0
    vocabulary: str = ""
    max_invalid_fraction: float = 0.05
    min_examples_to_judge: int = 1000
    cache: str = ""
    index: str = ""
    verify: bool = False
    threads: int = 8
    workers: int = 0
    ahead: int = 8


# Defaults of each task at 512 pixels: five sizes of about 1,024 tokens, and room for the text.
_CLIPS = {"sizes": ("336x336", "256x448", "448x256"), "frames": 17, "lengths": (2560,), "rows": 128}


_TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    "t2i": {"lengths": (1280,), "rows": 512},
    "edit": {"lengths": (2304,), "rows": 256, "source_dropout": 0.1},
    "understand": {"lengths": (1280, 2048), "rows": 256},
    "chat": {"lengths": (512, 2048), "rows": 256},
    "t2v": _CLIPS,
    "i2v": {**_CLIPS, "lengths": (3072,), "source_dropout": 0.1},
    "video_understand": _CLIPS,
}


def stream(task: str, manifest: str, weight: float, **changes: Any) -> dict[str, Any]:
    """All keys of a stream for an experiment file: the defaults of the task with `changes`."""
    values = {
        "task": task,
        "manifest": manifest,
        "weight": weight,
        **_TASK_DEFAULTS[task],
        **changes,
    }
    return defaults(StreamSettings) | values


def stream_settings(data: MultitaskData) -> dict[str, StreamSettings]:
    """The streams by name.

    Raises:
      ValueError: there is no stream, or a stream has an invalid key or value; the message names it.
    """
    if not data.streams:
        raise ValueError(
            "config.data.streams is empty; it requires at least one stream, NAME = {task, manifest, ...}"
        )
    return {
        name: parse(StreamSettings, values, f"config.data.streams.{name}")
        for name, values in data.streams.items()
    }


def picture_size(text: str, where: str) -> Size:
    """'384x672' -> Size(384, 672)."""
    parsed = _parse_sizes(text, where)
    if len(parsed) != 1:
        raise ValueError(
            f"{where} is {text!r}; it must be one size, HEIGHTxWIDTH, for example 512x512"
        )
    return parsed[0]


def picture_sizes(settings: StreamSettings, where: str) -> tuple[Size, ...]:
    """The image sizes of a stream."""
    if settings.task == "chat":
        return (UNUSED_SIZE,)
    return tuple(size for text in settings.sizes for size in _parse_sizes(text, where))


def _parse_sizes(text: str, where: str) -> tuple[Size, ...]:
    try:
        return named_sizes(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def possible_shapes(
    name: str, settings: StreamSettings, space: VAEConfig | PixelConfig
) -> list[BatchShape]:
    """Every shape that a batch of a stream can have, derived from its config without reading its data.

    Args:
      name: of the stream.
      settings: of the stream.
      space: the model's latents.

    Raises:
      ValueError: no sequence length is long enough for an image size, a clip is meant for a model that works on pixels,
        or precomputed latents are.
    """
    where = f"config.data.streams.{name}"
    if isinstance(space, PixelConfig) and settings.latents:
        raise ValueError(
            f"{where}.latents is {settings.latents!r}, and the model works on pixels; name the manifest instead"
        )
    shapes = []
    for size in picture_sizes(settings, f"{where}.sizes"):
        try:
            latent = space.latent_shape(settings.frames, size.height, size.width)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        spans = least_spans(settings.task, Grid(*latent[:3]))  # pyright: ignore[reportArgumentType]
        for slots in settings.slots or (least_slots(settings.task),):  # pyright: ignore[reportArgumentType]
            fitting = [n for n in settings.lengths if n >= spans + 4]
            if not fitting:
                raise ValueError(
                    f"{where}: an image of size {size} takes {1 + math.prod(latent[:3])} tokens, too many for lengths "
                    f"{settings.lengths}"
                )
            latent_shape = latent if settings.latents else ()
            shapes += [
                BatchShape(settings.rows, slots, settings.frames, size, n, latent_shape)
                for n in fitting
            ]
    return shapes


def abstract_batch(shape: BatchShape, parts: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one of `parts` parts of a batch."""
    arrays = shape.arrays(parts)
    return {name: jax.ShapeDtypeStruct(extent, dtype) for name, (extent, dtype) in arrays.items()}
