"""The settings of a mixture's stream, and the shapes of its batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from tuna_jax.data.media.color import Hdr, check_hdr
from tuna_jax.data.media.image import SMALLEST_SIDE, Size
from tuna_jax.data.media.video import check_frames
from tuna_jax.data.mixture.bucketing import SIZES_512
from tuna_jax.data.mixture.tokenize_example import (
    ACCEPTS,
    VIDEO_TASKS,
    Task,
    check_dropout,
    least_slots,
    least_spans,
)
from tuna_jax.data.sources.base import ExampleSource
from tuna_jax.data.sources.precomputed_latents import LatentExamples
from tuna_jax.sequence import Grid

UNUSED_SIZE = Size(32, 32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleStream:
    """A task over a source of examples.

    Attributes:
        name: used in logs; it also seeds the stream, so that other streams do not change it.
        task: how an example becomes a sequence (tokenize_example.py).
        source: the examples, for example a `Manifest`.
        weight: the share of batches, relative to the other streams' weights.
        rows: B, the rows per batch over all hosts together.
        lengths: sequence lengths, ascending; an example takes the smallest that holds it.
        sizes: image sizes; None is TUNA's five at 512 pixels, or one small size for `chat`, whose slot stays unused.
        slots: numbers of visual slots, ascending; None is 2 for edits and for `i2v`, else 1. An edit has one for each
            source, and one for its target.
        frames: per video, 1 + 4k; 1 for images.
        fps: frames per second taken from a video; None spreads them over the whole video.
        text_dropout, source_dropout, both_dropout: see `tokenize_example.left_out`.
        smallest: the shortest side, in pixels, of a usable image or video.
        hdr: 'tone_map' videos and images in high dynamic range, or 'refuse' them as invalid examples.
        draws: whether to train on images by the assistant in conversations. Otherwise they are clean, and a
            conversation in which no learned text follows them is invalid.
        part_rows: train on the first examples, as many as this, so that only they need be scanned; 0 is all of them,
            of a run that resumes those that it began with; -1 is all of them, also of a run that began with a part.
        reduced_decode: see `reduced` of `media.image.read_image`.
    """

    name: str
    task: Task
    source: ExampleSource
    weight: float
    rows: int
    lengths: tuple[int, ...]
    sizes: tuple[Size, ...] | None = None
    slots: tuple[int, ...] | None = None
    frames: int = 1
    fps: float | None = None
    text_dropout: float = 0.1
    source_dropout: float = 0.0
    both_dropout: float | None = None
    smallest: int = SMALLEST_SIDE
    hdr: Hdr = "tone_map"
    draws: bool = True
    part_rows: int = 0
    reduced_decode: bool = False

    def __post_init__(self) -> None:
        check_hdr(self.hdr)
        where = f"stream {self.name!r}"
        if self.task not in ACCEPTS:
            raise ValueError(f"{where}: task {self.task!r} is not one of {', '.join(ACCEPTS)}")
        for key, values in (("lengths", self.lengths), ("slots", self.slot_counts)):
            if not values or list(values) != sorted(set(values)) or values[0] < 1:
                raise ValueError(f"{where}: {key} is {values}; give ascending positive numbers")
        if self.slot_counts[0] < least_slots(self.task):
            raise ValueError(
                f"{where}: slots is {self.slots}, but a row of task {self.task!r} has at least 2 visual slots"
            )
        if not self.picture_sizes or len(set(self.picture_sizes)) != len(self.picture_sizes):
            raise ValueError(f"{where}: sizes is {self.sizes}; give each image size once")
        if self.frames != 1 and self.task not in VIDEO_TASKS:
            raise ValueError(f"{where}: frames is {self.frames}, but task {self.task!r} has images")
        if self.frames == 1 and self.task == "i2v":
            raise ValueError(
                f"{where}: frames is 1, but task 'i2v' continues a first frame; give 1 + 4k frames, such as 17"
            )
        try:
            check_dropout(self.text_dropout, self.source_dropout, self.both_dropout)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if self.part_rows < -1:
            raise ValueError(
                f"{where}: part_rows is {self.part_rows}; give the number of the first examples to train on, 0, or -1 "
                "for all"
            )
        if self.weight < 0:
            raise ValueError(f"{where}: weight is {self.weight}; it must be 0 or more")

    @property
    def picture_sizes(self) -> tuple[Size, ...]:
        """The image sizes, with the default filled in."""
        if self.sizes is None:
            return (UNUSED_SIZE,) if self.task == "chat" else SIZES_512
        return self.sizes

    @property
    def slot_counts(self) -> tuple[int, ...]:
        """The numbers of visual slots, with the default filled in."""
        return (least_slots(self.task),) if self.slots is None else self.slots


@dataclasses.dataclass(frozen=True, order=True)
class BatchShape:
    """The extents of a batch over all hosts; one program is compiled for each.

    `latents` is (T, h, w, C) of precomputed latents; empty if the batch has pixels.
    """

    rows: int
    slots: int
    frames: int
    size: Size
    length: int
    latents: tuple[int, ...] = ()

    @property
    def visual(self) -> str:
        """The name of the array that fills the visual slots: 'pixels' or 'moments'."""
        return "moments" if self.latents else "pixels"

    def arrays(self, process_count: int = 1) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and type of every array of one host's batch."""
        rows, slots = self.rows // process_count, self.slots
        if self.latents:
            visual = ((rows, slots, 2, *self.latents), np.dtype(ml_dtypes.bfloat16))
        else:
            clip = (self.frames, self.size.height, self.size.width, 3)
            visual = ((rows, slots, *clip), np.dtype(np.uint8))
        return {
            "tokens": ((rows, self.length), np.dtype(np.int32)),
            "labels": ((rows, self.length), np.dtype(np.int32)),
            "spans": ((rows, slots, 2), np.dtype(np.int32)),
            "is_target": ((rows, slots), np.dtype(bool)),
            self.visual: visual,
            "stream": ((rows,), np.dtype(np.int32)),
        }

    def __str__(self) -> str:
        kind = " precomputed" if self.latents else ""
        return f"{self.rows} rows of {self.slots}x{self.frames}x{self.size}{kind}, {self.length} tokens"


def stream_grids(stream: ExampleStream, spatial: int, temporal: int) -> list[Grid]:
    """The latent extent of each of a stream's sizes; ValueError if one fits neither the VAE nor the lengths."""
    grids = []
    try:
        frames = check_frames(stream.frames, temporal)
    except ValueError as error:
        raise ValueError(f"stream {stream.name!r}: {error}") from error
    for size in stream.picture_sizes:
        if size.height % spatial or size.width % spatial:
            raise ValueError(
                f"stream {stream.name!r}: size {size} must have multiples of {spatial}, the VAE's spatial factor"
            )
        grid = Grid(frames, size.height // spatial, size.width // spatial)
        grids.append(grid)
        least = least_spans(stream.task, grid) + 4
        if least > stream.lengths[-1]:
            raise ValueError(
                f"stream {stream.name!r}: size {size} needs at least {least} tokens, but the longest of its "
                f"lengths is {stream.lengths[-1]}"
            )
    return grids


def check_latents(stream: ExampleStream, grids: list[Grid], vae_fingerprint: str | None) -> None:
    """Raises ValueError if a stream's precomputed latents differ from what the stream and its VAE would compute."""
    source = stream.source
    if not isinstance(source, LatentExamples):
        return
    where = f"stream {stream.name!r}: the latents in {source.name}"
    if vae_fingerprint is not None and source.vae_fingerprint != vae_fingerprint:
        raise ValueError(
            f"{where} are from another VAE (fingerprint {source.vae_fingerprint}; this model's is {vae_fingerprint}); "
            "encode the manifest again with this one: python -m tuna_jax.encode_latents --vae="
        )
    missing = [str(size) for size in source.sizes if size not in stream.picture_sizes]
    if missing:
        raise ValueError(
            f"{where} have sizes {', '.join(map(str, source.sizes))}, and the stream lacks {', '.join(missing)}; "
            "give it the sizes that were encoded"
        )
    if stream.task in VIDEO_TASKS and (stream.frames, stream.fps) != (source.frames, source.fps):
        raise ValueError(
            f"{where} have {source.frames} frames at fps={source.fps}, and the stream has {stream.frames} at "
            f"fps={stream.fps}; they must be the same"
        )
    for size, grid in zip(stream.picture_sizes, grids, strict=True):
        encoded = source.grids.get((size, stream.frames), grid)
        if encoded != grid:
            raise ValueError(f"{where} are {encoded} at {size}, and the model requires {grid}")


def check_rows(stream: ExampleStream, hosts: int) -> None:
    """Raises ValueError if hosts cannot share the rows of a batch evenly."""
    if stream.rows <= 0 or stream.rows % hosts:
        raise ValueError(
            f"stream {stream.name!r} has {stream.rows} rows per batch, which {hosts} hosts cannot share evenly; give a "
            f"positive multiple of {hosts}"
        )


def check_names(streams: Sequence[ExampleStream]) -> None:
    """Raises ValueError if there is no stream, or two have one name, or two sources have.

    Lists of invalid examples would confuse two sources of one name.
    """
    names = [stream.name for stream in streams]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"the streams are named {names}; give each its own name")
    seen: dict[str, tuple[str, Path | None]] = {}
    for stream in streams:
        location = getattr(stream.source, "location", None)
        other, before = seen.setdefault(stream.source.name, (stream.name, location))
        if before != location:
            raise ValueError(
                f"the streams {other!r} and {stream.name!r} have two sources of one name, {stream.source.name!r}, in "
                f"{before} and {location}; give one of them another name, such as that of its folder"
            )
