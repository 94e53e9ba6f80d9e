"""Grain pipelines: from latent pools to the batches of the training step.

    pool --shuffle, repeat--> scene index --random_map--> Sample --fixed rows per batch--> Batch

A Batch is a plain dict of NumPy arrays (B rows, S tokens, N visual slots, latents of T x h x w x C):

    tokens     int32   [B, S]            padded with the pad token
    labels     int32   [B, S]            -100 where there is no text loss
    spans      int32   [B, N, 2]         (offset of the time token, 1 + T*h*w); unused (-1, -1)
    is_target  bool    [B, N]            True: noised, flow loss; False: clean
    latents    float32 [B, N, T, h, w, C]  clean normalised latents, sampled from the posterior
    stream     int32   [B]               index into the mixture's streams
    pixels     uint8   [B, N, 1, H, W, 3]  the clean images of the slots, only for designs that see them

Every stream has the same rows of every batch, so shapes and proportions are constant. Batch n depends only on
(seed, n): `batches(...)[n]` is random access, and the iterator's state is a small JSON.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Float32, UInt8

from tuna_jax.data.loader import Batch
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.emoji.latent_pool import LatentPool
from tuna_jax.emoji.world.captions import captions, questions, sentence
from tuna_jax.emoji.world.worlds import SCENES, World
from tuna_jax.sequence import Grid, TokenSequence, stack, text_to_image, understanding

STREAMS = ("t2i", "understand")


class Sample(NamedTuple):
    """One row, before padding: its token sequence, and the latents and clean pixels of its visual slots.

    Pixels are None for designs that see latents only.
    """

    sequence: TokenSequence
    latents: Float32[np.ndarray, "n t h w c"]
    stream: int
    pixels: UInt8[np.ndarray, "n 1 height width 3"] | None = None


@dataclasses.dataclass(frozen=True)
class Stream:
    """A named task, its samples, and its number of rows in each batch.

    Attributes:
        name: for example 't2i' or 'understand'; also the name in metrics.
        samples: an endless MapDataset of Sample, a pure function of its index.
        rows: rows per batch, over all hosts together.
    """

    name: str
    samples: grain.MapDataset[Sample]
    rows: int


def cached_encode(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """The tokenizer's `encode` with a cache: the emoji world has few texts, and each repeats."""
    return functools.lru_cache(maxsize=1 << 16)(tokenizer.encode)


def latent_grid(pool: LatentPool[Any]) -> Grid:
    """Latent grid of an item of the pool."""
    frames, height, width, _ = pool.latent_shape
    return Grid(frames, height, width)


def endless(
    pool: LatentPool[Any], seed: int, make_sample: Callable[[int, np.random.Generator], Sample]
) -> grain.MapDataset[Sample]:
    """All items of the pool in a new order every epoch; `make_sample` gets a new random state for each."""
    dataset = grain.MapDataset.range(len(pool)).seed(seed).shuffle().repeat()
    return dataset.random_map(make_sample)


def text_to_image_stream(
    pool: LatentPool[Any],
    tokenizer: Tokenizer,
    *,
    rows: int,
    seed: int = 0,
    caption_dropout: float = 0.1,
    sentences: float = 0.1,
    spread: float = 1.0,
    world: World = SCENES,
) -> Stream:
    """Caption -> image: `<bos> caption <boi> [time][img]*n <eoi> <eos>` (model.md section 5).

    Args:
        pool: latents with their scenes.
        tokenizer: encodes the text.
        rows: rows per batch.
        seed: seed of the order, the phrasings and the samples of the posterior.
        caption_dropout: share of rows with an empty prompt, for classifier-free guidance.
        sentences: share of captions with a capital letter and a full stop.
        spread: of the latents around the posterior mean, in posterior standard deviations.
        world: gives the captions of the pool's scenes.
    """
    grid, special, encode = latent_grid(pool), tokenizer.special, cached_encode(tokenizer)

    def make_sample(index: int, random: np.random.Generator) -> Sample:
        text = choose_phrasing(world.phrasings(pool.source[index], random), random, sentences)
        ids = [] if random.random() < caption_dropout else encode(text)
        latents = pool.sample(index, random, spread)[None]
        sequence, stream = text_to_image(special, ids, grid), STREAMS.index("t2i")
        return Sample(sequence, latents, stream, pool.pixels(index))

    return Stream("t2i", endless(pool, seed, make_sample), rows)


def choose_phrasing(phrasings: Sequence[str], random: np.random.Generator, sentences: float) -> str:
    """A random phrasing; with probability `sentences`, with a capital letter and a full stop."""
    text = phrasings[int(random.integers(len(phrasings)))]
    return sentence(text) if random.random() < sentences else text


def understanding_stream(
    pool: LatentPool[Any],
    tokenizer: Tokenizer,
    *,
    rows: int,
    seed: int = 1,
    question_weights: Mapping[str, float] | None = None,
    sentences: float = 0.1,
    world: World = SCENES,
) -> Stream:
    """Question -> answer, in the plain template: `<bos> <boi> [time][img]*n <eoi> question answer <eos>`.

    Args:
        pool: latents with their scenes.
        tokenizer: encodes the text.
        rows: rows per batch.
        seed: as in `text_to_image_stream`.
        question_weights: relative frequency of each kind of question (`World.kinds`) among those that a
            scene has; None takes the world's. Questions of one kind are equally likely. A kind that is not named has
            weight 0.
        sentences: share of questions with a capital letter.
        world: gives the questions about the pool's scenes.
    """
    weights = dict(world.question_weights if question_weights is None else question_weights)
    unknown = sorted(set(weights) - set(world.kinds))
    if unknown:
        raise ValueError(
            f"question_weights has unknown kinds {unknown}; the kinds are {', '.join(world.kinds)}"
        )
    always = [kind for kind in ("ground", "count", "describe") if weights.get(kind, 0) > 0]
    if not always:
        raise ValueError(
            "question_weights leaves some scenes without a question; at least one of 'ground', "
            "'count' and 'describe' requires a positive weight"
        )
    grid, special, encode = latent_grid(pool), tokenizer.special, cached_encode(tokenizer)

    def make_sample(index: int, random: np.random.Generator) -> Sample:
        candidates = world.questions(pool.source[index])
        kinds = sorted({item.kind for item in candidates})
        shares = np.array([weights.get(kind, 0.0) for kind in kinds])
        kind = kinds[int(random.choice(len(kinds), p=shares / shares.sum()))]
        of_kind = [item for item in candidates if item.kind == kind]
        question, answer, _ = of_kind[int(random.integers(len(of_kind)))]
        if random.random() < sentences:
            question = sentence(question)
        latents = pool.sample(index, random)[None]
        sequence = understanding(special, encode(question), encode(answer), grid)
        return Sample(sequence, latents, STREAMS.index("understand"), pool.pixels(index))

    return Stream("understand", endless(pool, seed, make_sample), rows)


class _RowSelection(grain.transforms.DatasetSelectionMap):
    """Row r of batch n -> (stream, index of its sample): every batch has the same rows of each stream.

    With several hosts, each has a contiguous block of the batch's rows. The concatenated batches of all hosts are
    therefore the same for any number of hosts, and the noise of row r belongs to the same sample.
    """

    def __init__(self, rows: Sequence[int], process_index: int, process_count: int):
        self._rows = tuple(rows)
        self._local = sum(rows) // process_count
        self._first = process_index * self._local

    def __len__(self) -> int:
        return self._local * 10**12

    def __getitem__(self, index: int) -> tuple[int, int]:
        batch, row = divmod(index, self._local)
        row += self._first
        for stream, rows in enumerate(self._rows):
            if row < rows:
                return stream, batch * rows + row
            row -= rows
        raise AssertionError("unreachable: row is below the sum of rows")


def batches(
    streams: Sequence[Stream],
    tokenizer: Tokenizer,
    *,
    length: int,
    slots: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset[Batch]:
    """The mixture as an endless, random-access data set of batches.

    Args:
        streams: in the order of rows within a batch.
        tokenizer: gives the pad token.
        length: S, tokens per row; a longer sample is an error that names its length.
        slots: N, visual slots per row.
        process_index: index of this host.
        process_count: number of hosts; it must divide the number of rows of all streams together.
    """
    rows = [stream.rows for stream in streams]
    if sum(rows) % process_count or min(rows) <= 0:
        listed = " and ".join(f"{stream.name!r} has {stream.rows} rows" for stream in streams)
        raise ValueError(
            f"stream {listed} per batch, which cannot be divided between {process_count} hosts; each stream requires "
            f"a positive number of rows, and their sum must be a multiple of {process_count}"
        )

    def collate(samples: Sequence[Sample]) -> Batch:
        batch = stack([s.sequence for s in samples], length, slots, tokenizer.special)
        del batch["lengths"]
        batch["latents"] = _padded([s.latents for s in samples], slots)
        batch["stream"] = np.array([s.stream for s in samples], np.int32)
        pixels = [s.pixels for s in samples if s.pixels is not None]
        return {**batch, "pixels": _padded(pixels, slots)} if pixels else batch

    choice = _RowSelection(rows, process_index, process_count)
    mixture = grain.MapDataset.select_from_datasets([s.samples for s in streams], choice)
    return mixture.batch(sum(rows) // process_count, drop_remainder=True, batch_fn=collate)


def _padded(rows: Sequence[np.ndarray], slots: int) -> np.ndarray:
    """Rows of at most `slots` slots each, all of one shape, as one array; unused slots are 0."""
    padded = np.zeros((len(rows), slots, *rows[0].shape[1:]), rows[0].dtype)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


def longest_row(tokenizer: Tokenizer, grid: Grid, scenes: int = 4_000) -> int:
    """Tokens of the longest image row of the emoji world, measured over `scenes` scenes."""
    from tuna_jax.emoji.world.scenes import LAYOUTS, SceneSource

    longest = 0
    for layout in LAYOUTS:
        source = SceneSource("train", weights={layout: 1.0})
        for index in range(scenes // len(LAYOUTS)):
            scene = source[index]
            texts = [[sentence(text)] for text in captions(scene)]
            texts += [[item.question, item.answer] for item in questions(scene)]
            lengths = (sum(len(tokenizer.encode(part)) for part in text) for text in texts)
            longest = max(longest, *lengths)
    return longest + 4 + 1 + grid.tokens  # bos, boi, eoi, eos, and the time token
