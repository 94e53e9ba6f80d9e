"""A row of a mixture, ready for its batch: laid out, and its pictures decoded or its posteriors read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Shaped

from tuna_jax.data.invalid_examples import Fault, report_as_invalid
from tuna_jax.data.media.image import Encoded, read_image
from tuna_jax.data.media.video import read_video
from tuna_jax.data.mixture.bucket_sampler import BucketSampler
from tuna_jax.data.mixture.stream import ExampleStream
from tuna_jax.data.mixture.tokenize_example import VIDEO_TASKS, tokenize_example
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.sequence import TokenSequence


def load_example(
    stream: ExampleStream,
    cell: BucketSampler,
    index: int,
    random: np.random.Generator,
    tokenizer: Tokenizer,
    space: Shaped[np.ndarray, "n ..."],
    *,
    encode: Callable[[str], list[int]],
) -> TokenSequence:
    """Example `index` of a stream's source, for a batch of a cell.

    Args:
        stream: which one.
        cell: its bucket.
        index: the row.
        random: draws the layout's dropout and prompt, and where a clip begins: in this order.
        tokenizer: makes the ids.
        space: the row's visual slots in the batch, which are filled: uint8 pixels, or moments.
        encode: the tokenizer's, with a memory.

    Raises:
        InvalidExample: the row cannot be used; `space` may hold some of it.
    """
    row, size = stream.source[index], cell.bucket.size
    with report_as_invalid(row.source, row.line):
        layout = tokenize_example(
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
        if row.turns and layout.sequence.is_target.any() and not stream.draws:
            raise Fault(
                "drawn_picture",
                f"the conversation ends in a picture that the assistant draws; set draws=True for the stream "
                f"{stream.name!r} to learn it",
            )
        position = random.random() if stream.task in VIDEO_TASKS else 0.0

        for slot, medium in zip(space, layout.media, strict=False):
            if isinstance(medium, Encoded):
                slot[:] = medium.read()
            elif stream.task not in VIDEO_TASKS:
                slot[0] = read_image(medium, size, smallest=stream.smallest)
            else:
                options = {"fps": stream.fps, "position": position, "smallest": stream.smallest}
                slot[:] = read_video(medium, size, stream.frames, **options)
        return layout.sequence
