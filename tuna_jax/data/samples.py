"""A row of a mixture, ready for its batch: laid out, and its pictures decoded or its latents drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from tuna_jax.data.bad_rows import blaming
from tuna_jax.data.cells import Cell
from tuna_jax.data.layouts import VIDEO_TASKS, lay_out
from tuna_jax.data.media import Encoded, Medium, read_image
from tuna_jax.data.streams import RowStream
from tuna_jax.data.tokenizer import Tokenizer
from tuna_jax.data.video import read_video
from tuna_jax.sequence import TokenSequence

Clip = UInt8[np.ndarray, "f h w 3"] | Float32[np.ndarray, "t y x c"]


class Sample(NamedTuple):
    """A sequence, and what fills each of its spans: pixels or latents."""

    sequence: TokenSequence
    clips: list[Clip]


def make_sample(
    stream: RowStream,
    cell: Cell,
    index: int,
    random: np.random.Generator,
    tokenizer: Tokenizer,
    *,
    encode: Callable[[str], list[int]],
) -> Sample:
    """Row `index` of a stream's source, for a batch of a cell.

    Args:
        stream: which one.
        cell: its bucket.
        index: the row.
        random: draws the layout's dropout and prompt, where a clip begins, and latents: in this order.
        tokenizer: makes the ids.
        encode: the tokenizer's, with a memory.

    Raises:
        BadRow: the row cannot be used.
    """
    row, size = stream.source[index], cell.bucket.size
    with blaming(row.source, row.line):
        layout = lay_out(
            row,
            stream.task,
            tokenizer,
            cell.grid,
            random,
            longest=cell.bucket.length,
            text_dropout=stream.text_dropout,
            source_dropout=stream.source_dropout,
            encode=encode,
        )
        place = random.random() if stream.task in VIDEO_TASKS else 0.0

        def read(medium: Medium) -> Clip:
            if isinstance(medium, Encoded):
                return draw(medium, random)
            if stream.task not in VIDEO_TASKS:
                return read_image(medium, size, smallest=stream.smallest)[None]
            options = {"fps": stream.fps, "place": place, "smallest": stream.smallest}
            return read_video(medium, size, stream.frames, **options)

        return Sample(layout.sequence, [read(medium) for medium in layout.media])


def draw(medium: Encoded, random: np.random.Generator) -> Float32[np.ndarray, "t y x c"]:
    """A draw from the posterior: mean + std * noise."""
    mean, std = medium.read()
    noise = random.standard_normal(mean.shape, np.float32)
    noise *= std
    noise += mean
    return noise
