"""Grain pipelines: from latent pools to the batches that the training step eats.

    pool --shuffle, repeat--> scene index --random_map--> Sample --fixed rows a batch--> Batch

A Batch is a plain dict of NumPy arrays (B rows, S tokens, N visual slots, latents of T x h x w x C):

    tokens     int32   [B, S]            padded with the pad token
    labels     int32   [B, S]            -100 where there is no text loss
    spans      int32   [B, N, 2]         (offset of the time token, 1 + T*h*w); unused (-1, -1)
    is_target  bool    [B, N]            True: noised, flow loss; False: clean
    latents    float32 [B, N, T, h, w, C]  clean normalised latents, drawn from the posterior
    task       int32   [B]               index into the mixture's streams

Every stream has the same rows of every batch, so shapes and the mix are constant, and batch n depends on
(seed, n) alone: `batches(...)[n]` is random access, and the iterator's state is one small JSON.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Float32

from tuna_jax.data.loader import Batch
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.emoji.latent_pool import LatentPool
from tuna_jax.emoji.world.captions import KINDS, captions, questions, sentence
from tuna_jax.emoji.world.scenes import Scene
from tuna_jax.sequence import Grid, TokenSequence, stack, text_to_image, understanding

STREAMS = ("t2i", "understand")
DEFAULT_QUESTION_WEIGHTS: dict[str, float] = {
    "name": 5.0,
    "ground": 1.0,
    "where": 1.0,
    "count": 1.0,
    "relation": 0.5,
    "list": 1.0,
    "describe": 1.0,
}


class Sample(NamedTuple):
    """One row, before padding: its sequence and the latents of its visual slots."""

    sequence: TokenSequence
    latents: Float32[np.ndarray, "n t h w c"]
    task: int


@dataclasses.dataclass(frozen=True)
class Stream:
    """A named task with its samples and how many rows of each batch it has.

    Attributes:
        name: 't2i' or 'understand'; a metric's name in logs.
        samples: an endless MapDataset of Sample, a pure function of its index.
        rows: rows a batch, over all hosts together.
    """

    name: str
    samples: grain.MapDataset[Sample]
    rows: int


def remembering(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """The tokenizer's `encode` with a memory: the world has few texts, and each comes again."""
    return functools.lru_cache(maxsize=1 << 16)(tokenizer.encode)


def grid_of(pool: LatentPool[Any]) -> Grid:
    """Latent extent of an item of the pool."""
    frames, height, width, _ = pool.latent_shape
    return Grid(frames, height, width)


def endless(
    pool: LatentPool[Any], seed: int, draw: Callable[[int, np.random.Generator], Sample]
) -> grain.MapDataset[Sample]:
    """All items of the pool in a new order every epoch; `draw` gets a new random state every time."""
    dataset = grain.MapDataset.range(len(pool)).seed(seed).shuffle().repeat()
    return dataset.random_map(draw)


def text_to_image_stream(
    pool: LatentPool[Scene],
    tokenizer: Tokenizer,
    *,
    rows: int,
    seed: int = 0,
    caption_dropout: float = 0.1,
    sentences: float = 0.1,
    spread: float = 1.0,
) -> Stream:
    """Caption -> image: `<bos> caption <boi> [time][img]*n <eoi> <eos>` (model.md section 5).

    Args:
        pool: latents with their scenes.
        tokenizer: makes the ids.
        rows: rows a batch.
        seed: another seed gives another order, other phrasings and other draws of the posterior.
        caption_dropout: the share of rows with an empty prompt, for guidance.
        sentences: the share of captions written with a capital and a full stop.
        spread: of the drawn latents around the posterior's mean, relative to its standard deviation.
    """
    grid, special, encode = grid_of(pool), tokenizer.special, remembering(tokenizer)

    def draw(index: int, random: np.random.Generator) -> Sample:
        text = phrased(captions(pool.source[index]), random, sentences)
        ids = [] if random.random() < caption_dropout else encode(text)
        latents = pool.sample(index, random, spread)[None]
        return Sample(text_to_image(special, ids, grid), latents, STREAMS.index("t2i"))

    return Stream("t2i", endless(pool, seed, draw), rows)


def phrased(known: Sequence[str], random: np.random.Generator, sentences: float) -> str:
    """One of several phrasings, now and then as a sentence with a capital and a full stop."""
    text = known[int(random.integers(len(known)))]
    return sentence(text) if random.random() < sentences else text


def understanding_stream(
    pool: LatentPool[Scene],
    tokenizer: Tokenizer,
    *,
    rows: int,
    seed: int = 1,
    question_weights: Mapping[str, float] | None = None,
    sentences: float = 0.1,
) -> Stream:
    """Question -> answer, in the plain form: `<bos> <boi> [time][img]*n <eoi> question answer <eos>`.

    Args:
        pool: latents with their scenes.
        tokenizer: makes the ids.
        rows: rows a batch.
        seed: as in `text_to_image_stream`.
        question_weights: how often each kind of question (phrases.KINDS) is asked, relative to the
            others that a scene has; within a kind all are as likely. A kind not named is not asked.
        sentences: the share of questions written with a capital.
    """
    weights = dict(DEFAULT_QUESTION_WEIGHTS if question_weights is None else question_weights)
    unknown = sorted(set(weights) - set(KINDS))
    if unknown:
        raise ValueError(f"question_weights names {unknown}; the kinds are {', '.join(KINDS)}")
    always = [kind for kind in ("ground", "count", "describe") if weights.get(kind, 0) > 0]
    if not always:
        raise ValueError(
            "question_weights leaves some scenes without a question; give 'ground', 'count' or "
            "'describe' a positive weight"
        )
    grid, special, encode = grid_of(pool), tokenizer.special, remembering(tokenizer)

    def draw(index: int, random: np.random.Generator) -> Sample:
        known = questions(pool.source[index])
        kinds = sorted({item.kind for item in known})
        shares = np.array([weights.get(kind, 0.0) for kind in kinds])
        kind = kinds[int(random.choice(len(kinds), p=shares / shares.sum()))]
        asked = [item for item in known if item.kind == kind]
        question, answer, _ = asked[int(random.integers(len(asked)))]
        if random.random() < sentences:
            question = sentence(question)
        latents = pool.sample(index, random)[None]
        sequence = understanding(special, encode(question), encode(answer), grid)
        return Sample(sequence, latents, STREAMS.index("understand"))

    return Stream("understand", endless(pool, seed, draw), rows)


class _Rows(grain.transforms.DatasetSelectionMap):
    """Row r of batch n -> (stream, its index): every batch has the same rows of each stream.

    With several hosts each has a block of the batch's rows, so that the hosts' batches one after another are the same
    rows in the same order whatever their number is: what is drawn for row r of a batch is drawn for the same sample.
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
        length: S, tokens a row; a longer sample is an error that says how long it is.
        slots: N, visual slots a row.
        process_index: this host.
        process_count: how many hosts; it must divide the rows of all streams together.
    """
    rows = [stream.rows for stream in streams]
    if sum(rows) % process_count or min(rows) <= 0:
        listed = " and ".join(f"{stream.name!r} has {stream.rows} rows" for stream in streams)
        raise ValueError(
            f"stream {listed} of a batch, which {process_count} hosts cannot share evenly; give each a positive "
            f"number, and all together a multiple of {process_count}"
        )

    def collate(samples: Sequence[Sample]) -> Batch:
        batch = stack([s.sequence for s in samples], length, slots, tokenizer.special)
        del batch["lengths"]
        shape = samples[0].latents.shape[1:]
        latents = np.zeros((len(samples), slots, *shape), np.float32)
        for row, sample in enumerate(samples):
            latents[row, : len(sample.latents)] = sample.latents
        task = np.array([s.task for s in samples], np.int32)
        return {**batch, "latents": latents, "stream": task}

    choice = _Rows(rows, process_index, process_count)
    mixture = grain.MapDataset.select_from_datasets([s.samples for s in streams], choice)
    return mixture.batch(sum(rows) // process_count, drop_remainder=True, batch_fn=collate)


def longest_row(tokenizer: Tokenizer, grid: Grid, scenes: int = 4_000) -> int:
    """Tokens of the longest row that the emoji world makes, found by looking at many scenes."""
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
