"""An example of a mixture, ready for its batch: tokenized, with its media decoded or its latents' moments read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Shaped

from tuna_jax.data.invalid_examples import report_as_invalid
from tuna_jax.data.media.image import Encoded, read_image
from tuna_jax.data.media.video import read_video
from tuna_jax.data.mixture.bucket_sampler import BucketSampler
from tuna_jax.data.mixture.stream import ExampleStream
from tuna_jax.data.mixture.tokenize_example import VIDEO_TASKS, tokenize_example
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.sequence import TokenSequence
from tuna_jax.utils.regular_files import with_retries


def load_example(
    stream: ExampleStream,
    sampler: BucketSampler,
    index: int,
    random: np.random.Generator,
    tokenizer: Tokenizer,
    slots: Shaped[np.ndarray, "n ..."],
    *,
    encode: Callable[[str], list[int]],
) -> TokenSequence:
    """Example `index` of a stream's source, for a batch of one bucket.

    Args:
        stream: the stream.
        sampler: of the bucket.
        index: the example's number in the stream's source.
        random: decides dropout, the caption's prompt, and where a video begins, in this order.
        tokenizer: text to ids.
        slots: the example's visual slots in the batch, filled in place: uint8 pixels, or moments of latents.
        encode: the tokenizer's `encode`, cached.

    Raises:
        InvalidExample: the example cannot be used; `slots` may be partly filled.
        OSError: the machine fails (not a file), repeatedly.
    """
    state = random.bit_generator.state

    def load() -> TokenSequence:
        random.bit_generator.state = state  # A second try makes the same choices.
        return _load_once(stream, sampler, index, random, tokenizer, slots, encode)

    return with_retries(load)


def _load_once(
    stream: ExampleStream,
    sampler: BucketSampler,
    index: int,
    random: np.random.Generator,
    tokenizer: Tokenizer,
    slots: Shaped[np.ndarray, "n ..."],
    encode: Callable[[str], list[int]],
) -> TokenSequence:
    example, size = stream.source[index], sampler.bucket.size
    with report_as_invalid(example.source, example.line):
        tokenized = tokenize_example(
            example,
            stream.task,
            tokenizer,
            sampler.grid,
            random,
            longest=sampler.bucket.length,
            text_dropout=stream.text_dropout,
            source_dropout=stream.source_dropout,
            both_dropout=stream.both_dropout,
            draws=stream.draws,
            encode=encode,
        )
        position = random.random() if stream.task in VIDEO_TASKS else 0.0

        clip = np.zeros(0)
        spans = zip(slots, tokenized.media, tokenized.sequence.spans[:, 1], strict=False)
        for number, (slot, medium, length) in enumerate(spans):
            # Of the clip whose first frame i2v is given, that slot has nothing else.
            first_only = length < 1 + sampler.grid.tokens
            if isinstance(medium, Encoded):
                moments = medium.read()
                frames = 1 if first_only else moments.shape[1]
                slot[:, :frames] = moments[:, :frames]
            elif stream.task not in VIDEO_TASKS:
                slot[0] = read_image(
                    medium,
                    size,
                    smallest=stream.smallest,
                    hdr=stream.hdr,
                    reduced=stream.reduced_decode,
                )
            else:
                options = {"fps": stream.fps, "position": position, "smallest": stream.smallest}
                options["hdr"] = stream.hdr
                if not number:
                    clip = read_video(medium, size, stream.frames, **options)
                frames = 1 if first_only else stream.frames
                slot[:frames] = clip[:frames]
        return tokenized.sequence
