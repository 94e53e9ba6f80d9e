"""Streams of the emoji world for edits, clips and dialogues; `image_streams.py` has those for images.

    edit               <bos> <boi> [time][src]*n <eoi> instruction <boi> [time][dst]*n <eoi> <eos>
    combine            an edit of two pictures: <bos> <boi> [time][src]*n <eoi> <boi> [time][src]*n <eoi> instruction ..
    i2v                <bos> <boi> [time][img]*m <eoi> caption <boi> [time][img]*n <eoi> <eos>, m tokens for one frame
    t2v                <bos> caption <boi> [time][img]*n <eoi> <eos>, n tokens for all frames
    video_understand   <bos> <boi> [time][img]*n <eoi> question answer <eos>
    dialogue           the chat template with the image before the first question, loss on every answer

Batches of one shape form a `Group`. `alternate` combines several groups into one data set, in which a `Schedule`
chooses the group of batch n from (seed, n).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import UInt8

from tuna_jax import sequence
from tuna_jax.data.mixture.schedule import Schedule
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.emoji.image_streams import (
    STREAMS,
    Batch,
    Sample,
    Stream,
    cached_encode,
    choose_phrasing,
    endless,
    latent_grid,
)
from tuna_jax.emoji.latent_pool import LatentPool
from tuna_jax.emoji.world import dialogues
from tuna_jax.emoji.world.captions import sentence
from tuna_jax.emoji.world.clips import (
    CLIP_KINDS,
    Clip,
    clip_captions,
    clip_questions,
    continuations,
)
from tuna_jax.emoji.world.combine import Combination
from tuna_jax.emoji.world.edits import Edit
from tuna_jax.emoji.world.rendering import render
from tuna_jax.emoji.world.scenes import Scene
from tuna_jax.sequence import Grid

TASKS = (*STREAMS, "edit", "t2v", "video_understand", "dialogue", "combine", "i2v")
FIRST_TASKS = TASKS[:6]
"""Those of earlier versions, whose runs keep losses of these."""
DEFAULT_CLIP_QUESTIONS: dict[str, float] = {
    "motion": 3.0,
    "direction": 2.0,
    "name": 2.0,
    "ground": 1.0,
    "describe": 2.0,
}


def render_edit(edit: Edit) -> UInt8[np.ndarray, "2 size size 3"]:
    """The source and the target image, as the two frames of an item of a pool."""
    return np.stack([render(edit.source), render(edit.target)])


def editing_stream(
    pool: LatentPool[Edit],
    tokenizer: Tokenizer,
    *,
    rows: int,
    seed: int = 0,
    instruction_dropout: float = 0.1,
    sentences: float = 0.1,
    spread: float = 1.0,
    source_spread: float = 1.0,
) -> Stream:
    """Image and instruction -> image.

    Args:
        pool: latents of `render_edit`: two frames, source and target.
        tokenizer: encodes the text.
        rows: rows per batch.
        seed: seed of the order, the phrasings and the samples of the posterior.
        instruction_dropout: share of rows without an instruction, for classifier-free guidance.
        sentences: share of instructions with a capital letter and a full stop.
        spread: of the target's latents around the posterior mean, in posterior standard deviations.
        source_spread: the same for the source.
    """
    pair = latent_grid(pool)
    if pair.frames != 2:
        raise ValueError(
            f"a pool of edits requires 2 frames per item, source and target; it has {pair.frames}"
        )
    grid = Grid(1, pair.height, pair.width)
    special, encode = tokenizer.special, cached_encode(tokenizer)

    def make_sample(index: int, random: np.random.Generator) -> Sample:
        text = choose_phrasing(pool.source[index].instructions, random, sentences)
        ids = [] if random.random() < instruction_dropout else encode(text)
        latents = pool.sample(index, random, (source_spread, spread))[:, None]
        tokens, stream = sequence.editing(special, ids, grid), TASKS.index("edit")
        return Sample(tokens, latents, stream, pool.pixels(index))

    return Stream("edit", endless(pool, seed, make_sample), rows)


def render_combination(item: Combination) -> UInt8[np.ndarray, "3 size size 3"]:
    """Both sources and the target, as the three frames of an item of a pool."""
    return np.stack([render(scene) for scene in (*item.sources, item.target)])


def combining_stream(
    pool: LatentPool[Combination],
    tokenizer: Tokenizer,
    *,
    rows: int,
    seed: int = 0,
    instruction_dropout: float = 0.1,
    sentences: float = 0.1,
    spread: float = 1.0,
    source_spread: float = 0.0,
) -> Stream:
    """Two images and instruction -> image; arguments as for `editing_stream`, the pool of `render_combination`."""
    triple = latent_grid(pool)
    if triple.frames != 3:
        raise ValueError(
            f"a pool of combinations requires 3 frames per item, two sources and a target; it has {triple.frames}"
        )
    grid = Grid(1, triple.height, triple.width)
    special, encode = tokenizer.special, cached_encode(tokenizer)

    def make_sample(index: int, random: np.random.Generator) -> Sample:
        text = choose_phrasing(pool.source[index].instructions, random, sentences)
        ids = [] if random.random() < instruction_dropout else encode(text)
        latents = pool.sample(index, random, (source_spread, source_spread, spread))[:, None]
        tokens = sequence.editing(special, ids, grid, sources=2)
        return Sample(tokens, latents, TASKS.index("combine"), pool.pixels(index))

    return Stream("combine", endless(pool, seed, make_sample), rows)


def continuation_stream(
    pool: LatentPool[Clip],
    tokenizer: Tokenizer,
    *,
    rows: int,
    seed: int = 0,
    caption_dropout: float = 0.1,
    sentences: float = 0.1,
    spread: float = 1.0,
    source_spread: float = 0.0,
) -> Stream:
    """First frame and caption -> clip; arguments as for `editing_stream`, the pool of `clip_stream`.

    The first frame's latents are a sample of their own, as an image that is given has.
    """
    grid, special, encode = latent_grid(pool), tokenizer.special, cached_encode(tokenizer)

    def make_sample(index: int, random: np.random.Generator) -> Sample:
        named = continuations(pool.source[index])
        text = named[int(random.integers(len(named)))]
        if text.startswith("the ") and random.random() < sentences:
            text = sentence(text)
        ids = [] if random.random() < caption_dropout else encode(text)
        clip = pool.sample(index, random, spread)
        first = np.zeros_like(clip)  # What follows the first frame is in no span.
        first[0] = pool.sample(index, random, source_spread)[0]
        tokens = sequence.image_to_video(special, ids, grid)
        return Sample(tokens, np.stack([first, clip]), TASKS.index("i2v"))

    return Stream("i2v", endless(pool, seed, make_sample), rows)


def clip_stream(
    pool: LatentPool[Clip],
    tokenizer: Tokenizer,
    *,
    rows: int,
    seed: int = 0,
    caption_dropout: float = 0.1,
    sentences: float = 0.1,
    spread: float = 1.0,
) -> Stream:
    """Caption -> clip; arguments as for `image_streams.text_to_image_stream`."""
    grid, special, encode = latent_grid(pool), tokenizer.special, cached_encode(tokenizer)

    def make_sample(index: int, random: np.random.Generator) -> Sample:
        text = choose_phrasing(clip_captions(pool.source[index]), random, sentences)
        ids = [] if random.random() < caption_dropout else encode(text)
        latents = pool.sample(index, random, spread)[None]
        return Sample(sequence.text_to_image(special, ids, grid), latents, TASKS.index("t2v"))

    return Stream("t2v", endless(pool, seed, make_sample), rows)


def clip_questions_stream(
    pool: LatentPool[Clip],
    tokenizer: Tokenizer,
    *,
    rows: int,
    seed: int = 1,
    question_weights: dict[str, float] | None = None,
    sentences: float = 0.1,
) -> Stream:
    """Clip and question -> answer; arguments as for `image_streams.understanding_stream`, kinds `clips.CLIP_KINDS`."""
    weights = dict(DEFAULT_CLIP_QUESTIONS if question_weights is None else question_weights)
    unknown = sorted(set(weights) - set(CLIP_KINDS))
    if unknown or not any(weights.get(kind, 0) > 0 for kind in CLIP_KINDS if kind != "direction"):
        raise ValueError(
            f"question_weights is {weights}; the kinds are {', '.join(CLIP_KINDS)}, and at least one "
            "other than 'direction', which not every clip has, requires a positive weight"
        )
    grid, special, encode = latent_grid(pool), tokenizer.special, cached_encode(tokenizer)

    def make_sample(index: int, random: np.random.Generator) -> Sample:
        candidates = clip_questions(pool.source[index])
        kinds = sorted({item.kind for item in candidates})
        shares = np.array([weights.get(kind, 0.0) for kind in kinds])
        kind = kinds[int(random.choice(len(kinds), p=shares / shares.sum()))]
        of_kind = [item for item in candidates if item.kind == kind]
        question, answer, _ = of_kind[int(random.integers(len(of_kind)))]
        if random.random() < sentences:
            question = sentence(question)
        tokens = sequence.understanding(special, encode(question), encode(answer), grid)
        return Sample(tokens, pool.sample(index, random)[None], TASKS.index("video_understand"))

    return Stream("video_understand", endless(pool, seed, make_sample), rows)


def dialogue_stream(
    pool: LatentPool[Scene], tokenizer: Tokenizer, *, rows: int, length: int, seed: int = 2
) -> Stream:
    """Image and two to four questions with their answers, in the chat template (model.md sections 5 and 8).

    A dialogue of more than `length` tokens loses its last turns.
    """
    grid = latent_grid(pool)

    def make_sample(index: int, random: np.random.Generator) -> Sample:
        turns = dialogues.dialogue(pool.source[index], random)
        while True:
            segments = tokenizer.chat(dialogues.messages(turns), grids=[grid])
            tokens = sequence.build(segments, tokenizer.special)
            if len(tokens.tokens) <= length or len(turns) == 1:
                break
            turns = turns[:-1]
        latents, stream = pool.sample(index, random)[None], TASKS.index("dialogue")
        return Sample(tokens, latents, stream, pool.pixels(index))

    return Stream("dialogue", endless(pool, seed, make_sample), rows)


@dataclasses.dataclass(frozen=True)
class Group:
    """Batches of one shape, and their share of all batches relative to the other groups'."""

    batches: grain.MapDataset[Batch]
    share: float

    @property
    def first(self) -> Batch:
        """The first batch; all others have its shapes."""
        batch = self.batches[0]
        assert batch is not None  # Grain allows elements to be filtered out; nothing here does.
        return batch


class _GroupSelection(grain.transforms.DatasetSelectionMap):
    """Batch n -> (group, index of the batch within it), given by a `Schedule`."""

    def __init__(self, shares: Sequence[float], seed: int):
        self._schedule = Schedule([(0, tuple(shares))], seed)

    def __len__(self) -> int:
        return 10**12

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self._schedule(index)


def alternate(groups: Sequence[Group], seed: int) -> grain.MapDataset[Batch]:
    """One endless data set of all groups' batches; batch n depends only on (seed, n)."""
    if len(groups) == 1:
        return groups[0].batches
    selection = _GroupSelection([group.share for group in groups], seed)
    return grain.MapDataset.select_from_datasets([group.batches for group in groups], selection)
