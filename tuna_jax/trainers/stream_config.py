"""Configuration of the streams of a multitask experiment, and the shapes of their batches."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from tuna_jax.config import VAEConfig
from tuna_jax.data.media.image import SMALLEST_SIDE, Size
from tuna_jax.data.mixture.bucketing import named_sizes
from tuna_jax.data.mixture.stream import UNUSED_SIZE, BatchShape
from tuna_jax.data.mixture.tokenize_example import ACCEPTS
from tuna_jax.training.step import Heads
from tuna_jax.utils.config_parsing import defaults, parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """A stream of `config.data.streams`; its key there is its name in logs.

    Attributes:
      task: 't2i', 'edit', 'understand', 'chat', 't2v' or 'video_understand' (data/mixture/tokenize_example.py).
      manifest: the JSONL file (data/sources/jsonl.py has the formats).
      image_root: where its relative paths begin; empty: the manifest's folder.
      latents: in place of a manifest, the folder that `python -m tuna_jax.encode_latents` made of it.
      tfds: in place of a manifest, a data set of TensorFlow Datasets: its name, or the folder of a prepared one.
      split, fields: of it; `fields` maps a manifest's keys to its features, as in data/sources/tfds.py.
      weight: its share of batches, relative to the other streams'. It may be changed when a run is resumed.
      rows: rows a batch, over all processes together.
      sizes: picture sizes, each 'HEIGHTxWIDTH', or '512' or '1024' for TUNA's five of that kind.
      lengths: sequence lengths in tokens, ascending.
      slots: how many pictures a row may have, ascending; empty: 2 for edits, else 1.
      frames: of a clip, 1 + 4k.
      fps: frames a second that are taken of a clip; 0 spreads them over the whole clip.
      text_dropout, source_dropout: how often the text, and an edit's source, are left out, for guidance.
      smallest: pixels that a picture's side must have.
      draws: conversations may end in a picture that the assistant draws; the flow head then runs on them too. Else
        such a row is a bad one.
    """

    task: str
    manifest: str = ""
    image_root: str = ""
    latents: str = ""
    tfds: str = ""
    split: str = "train"
    fields: dict = dataclasses.field(default_factory=dict)
    weight: float = 1.0
    rows: int = 8
    sizes: tuple[str, ...] = ("512",)
    lengths: tuple[int, ...] = (1280,)
    slots: tuple[int, ...] = ()
    frames: int = 1
    fps: float = 0.0
    text_dropout: float = 0.1
    source_dropout: float = 0.0
    smallest: int = SMALLEST_SIDE
    draws: bool = False

    def __post_init__(self) -> None:
        if self.task not in ACCEPTS:
            raise ValueError(f"task {self.task!r} is none of {', '.join(ACCEPTS)}")
        named = [key for key in ("manifest", "latents", "tfds") if getattr(self, key)]
        if len(named) != 1:
            raise ValueError(
                f"a stream of task {self.task!r} names {' and '.join(named) or 'no source'}; give it one of manifest, "
                "latents and tfds"
            )

    @property
    def heads(self) -> Heads:
        """Which heads a batch of this stream needs."""
        if self.task in ("t2i", "t2v", "edit"):
            return Heads(None, 0)
        return Heads(None if self.draws else 0, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultitaskData:
    """Where rows come from.

    Attributes:
      streams: name -> the keys of `StreamSettings`.
      held_out: name -> keys of `StreamSettings` that differ from the stream of that name, at least its source; what
        `tuna-jax evaluate` measures losses on. Empty: it takes the training streams, and says so.
      seed: of the order of rows and of all draws.
      vocabulary: empty: Qwen2.5's whole one; else the name or file of a compact one, or a Hugging Face folder.
      max_invalid_fraction: the largest share of rows that may be unusable before the run stops.
      min_examples_to_judge: how many rows must be seen before the share is judged.
      cache: folder for what is known of each row; empty: $TUNA_JAX_DATA, else ~/.cache/tuna_jax.
      threads: threads that make batches, in each process that does.
      workers: processes that make batches; 0: the training process itself does.
      ahead: batches that are prepared in advance.
    """

    streams: dict = dataclasses.field(default_factory=dict)
    held_out: dict = dataclasses.field(default_factory=dict)
    seed: int = 0
    vocabulary: str = ""
    max_invalid_fraction: float = 0.05
    min_examples_to_judge: int = 1000
    cache: str = ""
    threads: int = 8
    workers: int = 0
    ahead: int = 8


# What a task usually takes at TUNA's 512 pixels: five sizes of about 1,024 tokens, and room for the text.
_CLIPS = {"sizes": ("336x336", "256x448", "448x256"), "frames": 17, "lengths": (2560,), "rows": 128}


_USUAL: dict[str, dict[str, Any]] = {
    "t2i": {"lengths": (1280,), "rows": 512},
    "edit": {"lengths": (2304,), "rows": 256, "source_dropout": 0.1},
    "understand": {"lengths": (1280, 2048), "rows": 256},
    "chat": {"lengths": (512, 2048), "rows": 256},
    "t2v": _CLIPS,
    "video_understand": _CLIPS,
}


def stream(task: str, manifest: str, weight: float, **changes: Any) -> dict[str, Any]:
    """All keys of a stream for an experiment file: the task's usual sizes, lengths and rows, and `changes` of them."""
    given = {"task": task, "manifest": manifest, "weight": weight, **_USUAL[task], **changes}
    return defaults(StreamSettings) | given


def stream_settings(data: MultitaskData) -> dict[str, StreamSettings]:
    """The streams by name.

    Raises:
      ValueError: there are none, or a key or value of one is wrong; it is named.
    """
    if not data.streams:
        raise ValueError(
            "config.data.streams is empty; give it a stream, NAME = {task, manifest, ...}"
        )
    return {
        name: parse(StreamSettings, values, f"config.data.streams.{name}")
        for name, values in data.streams.items()
    }


def picture_size(text: str, where: str) -> Size:
    """'384x672' -> Size(384, 672)."""
    found = _named(text, where)
    if len(found) != 1:
        raise ValueError(f"{where} is {text!r}; it is one size, HEIGHTxWIDTH, for example 512x512")
    return found[0]


def picture_sizes(settings: StreamSettings, where: str) -> tuple[Size, ...]:
    """The sizes that a stream names."""
    if settings.task == "chat":
        return (UNUSED_SIZE,)
    return tuple(size for text in settings.sizes for size in _named(text, where))


def _named(text: str, where: str) -> tuple[Size, ...]:
    try:
        return named_sizes(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def possible_shapes(name: str, settings: StreamSettings, vae: VAEConfig) -> list[BatchShape]:
    """Every shape that a batch of a stream can have, whatever its rows are: known without reading anything.

    Raises:
      ValueError: a setting that cannot be.
    """
    where = f"config.data.streams.{name}"
    edit = settings.task == "edit"
    found = []
    for size in picture_sizes(settings, f"{where}.sizes"):
        latent = vae.latent_shape(settings.frames, size.height, size.width)
        span = 0 if settings.task == "chat" else 1 + math.prod(latent[:3])
        for slots in settings.slots or ((2,) if edit else (1,)):
            fitting = [n for n in settings.lengths if n >= span * (2 if edit else 1) + 4]
            if not fitting:
                raise ValueError(
                    f"{where}: a picture of {size} takes {span} tokens, too many for lengths {settings.lengths}"
                )
            ready = latent if settings.latents else ()
            found += [
                BatchShape(settings.rows, slots, settings.frames, size, n, ready) for n in fitting
            ]
    return found


def abstract_batch(shape: BatchShape) -> dict[str, jax.ShapeDtypeStruct]:
    """One process's part of a batch, as shapes."""
    arrays = shape.arrays(jax.process_count())
    return {name: jax.ShapeDtypeStruct(extent, dtype) for name, (extent, dtype) in arrays.items()}
