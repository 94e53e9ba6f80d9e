"""Streams of the emoji world beyond pictures with captions and questions: edits, clips, dialogues.

    edit               <bos> <boi> [time][src]*n <eoi> instruction <boi> [time][dst]*n <eoi> <eos>
    t2v                <bos> caption <boi> [time][img]*n <eoi> <eos>, n the tokens of all frames
    video_understand   <bos> <boi> [time][img]*n <eoi> question answer <eos>
    dialogue           the chat template with the picture before the first question, loss on every answer

Batches of one shape are a `Group`; `alternate` makes one data set of several groups, in which batch n is of the group
that a `Schedule` draws from (seed, n).
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
    endless,
    grid_of,
    phrased,
    remembering,
)
from tuna_jax.emoji.latent_pool import LatentPool
from tuna_jax.emoji.world import dialogues
from tuna_jax.emoji.world.captions import sentence
from tuna_jax.emoji.world.clips import CLIP_KINDS, Clip, clip_captions, clip_questions
from tuna_jax.emoji.world.edits import Edit
from tuna_jax.emoji.world.rendering import render
from tuna_jax.emoji.world.scenes import Scene
from tuna_jax.sequence import Grid

TASKS = (*STREAMS, "edit", "t2v", "video_understand", "dialogue")
DEFAULT_CLIP_QUESTIONS: dict[str, float] = {
    "motion": 3.0,
    "direction": 2.0,
    "name": 2.0,
    "ground": 1.0,
    "describe": 2.0,
}


def edit_pictures(edit: Edit) -> UInt8[np.ndarray, "2 size size 3"]:
    """The pictures before and after, as a pool holds them."""
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
    """Picture and instruction -> picture.

    Args:
        pool: latents of `edit_pictures`: two frames, before and after.
        tokenizer: makes the ids.
        rows: rows a batch.
        seed: another seed gives another order, other phrasings and other draws of the posterior.
        instruction_dropout: the share of rows without an instruction, for guidance.
        sentences: the share of instructions written with a capital and a full stop.
        spread: of the drawn latents of the target around the posterior's mean.
        source_spread: of the source's.
    """
    two = grid_of(pool)
    if two.frames != 2:
        raise ValueError(
            f"a pool of edits has 2 frames an item, before and after; not {two.frames}"
        )
    grid = Grid(1, two.height, two.width)
    special, encode = tokenizer.special, remembering(tokenizer)

    def draw(index: int, random: np.random.Generator) -> Sample:
        text = phrased(pool.source[index].instructions, random, sentences)
        ids = [] if random.random() < instruction_dropout else encode(text)
        latents = pool.sample(index, random, (source_spread, spread))[:, None]
        return Sample(sequence.editing(special, ids, grid), latents, TASKS.index("edit"))

    return Stream("edit", endless(pool, seed, draw), rows)


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
    """Caption -> clip; arguments as `pipeline.text_to_image_stream`."""
    grid, special, encode = grid_of(pool), tokenizer.special, remembering(tokenizer)

    def draw(index: int, random: np.random.Generator) -> Sample:
        text = phrased(clip_captions(pool.source[index]), random, sentences)
        ids = [] if random.random() < caption_dropout else encode(text)
        latents = pool.sample(index, random, spread)[None]
        return Sample(sequence.text_to_image(special, ids, grid), latents, TASKS.index("t2v"))

    return Stream("t2v", endless(pool, seed, draw), rows)


def clip_questions_stream(
    pool: LatentPool[Clip],
    tokenizer: Tokenizer,
    *,
    rows: int,
    seed: int = 1,
    question_weights: dict[str, float] | None = None,
    sentences: float = 0.1,
) -> Stream:
    """Clip and question -> answer; arguments as `pipeline.understanding_stream`, kinds `motions.CLIP_KINDS`."""
    weights = dict(DEFAULT_CLIP_QUESTIONS if question_weights is None else question_weights)
    unknown = sorted(set(weights) - set(CLIP_KINDS))
    if unknown or not any(weights.get(kind, 0) > 0 for kind in CLIP_KINDS if kind != "direction"):
        raise ValueError(
            f"weights of questions about clips are {weights}; the kinds are {', '.join(CLIP_KINDS)}, and one "
            "beside 'direction', which not every clip has, wants a positive weight"
        )
    grid, special, encode = grid_of(pool), tokenizer.special, remembering(tokenizer)

    def draw(index: int, random: np.random.Generator) -> Sample:
        known = clip_questions(pool.source[index])
        kinds = sorted({item.kind for item in known})
        shares = np.array([weights.get(kind, 0.0) for kind in kinds])
        kind = kinds[int(random.choice(len(kinds), p=shares / shares.sum()))]
        asked = [item for item in known if item.kind == kind]
        question, answer, _ = asked[int(random.integers(len(asked)))]
        if random.random() < sentences:
            question = sentence(question)
        laid = sequence.understanding(special, encode(question), encode(answer), grid)
        return Sample(laid, pool.sample(index, random)[None], TASKS.index("video_understand"))

    return Stream("video_understand", endless(pool, seed, draw), rows)


def dialogue_stream(
    pool: LatentPool[Scene], tokenizer: Tokenizer, *, rows: int, length: int, seed: int = 2
) -> Stream:
    """Picture and two to four questions with their answers, in the chat form (model.md sections 5 and 8).

    A conversation of more than `length` tokens is without its last turns.
    """
    grid = grid_of(pool)

    def draw(index: int, random: np.random.Generator) -> Sample:
        turns = dialogues.dialogue(pool.source[index], random)
        while True:
            segments = tokenizer.chat(dialogues.messages(turns), grids=[grid])
            laid = sequence.build(segments, tokenizer.special)
            if len(laid.tokens) <= length or len(turns) == 1:
                break
            turns = turns[:-1]
        return Sample(laid, pool.sample(index, random)[None], TASKS.index("dialogue"))

    return Stream("dialogue", endless(pool, seed, draw), rows)


@dataclasses.dataclass(frozen=True)
class Group:
    """Batches of one shape, and how often they come relative to the other groups'."""

    batches: grain.MapDataset[Batch]
    share: float

    @property
    def first(self) -> Batch:
        """Its first batch, for its shapes."""
        batch = self.batches[0]
        assert batch is not None  # Grain allows elements to be filtered out; nothing here does.
        return batch


class _Turns(grain.transforms.DatasetSelectionMap):
    """Batch n -> (group, batch of that group), as a schedule has it."""

    def __init__(self, shares: Sequence[float], seed: int):
        self._schedule = Schedule([(0, tuple(shares))], seed)

    def __len__(self) -> int:
        return 10**12

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self._schedule(index)


def alternate(groups: Sequence[Group], seed: int) -> grain.MapDataset[Batch]:
    """One endless data set of the groups' batches; batch n depends on (seed, n) alone, on every host alike."""
    if len(groups) == 1:
        return groups[0].batches
    turns = _Turns([group.share for group in groups], seed)
    return grain.MapDataset.select_from_datasets([group.batches for group in groups], turns)
