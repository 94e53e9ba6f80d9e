"""The compact vocabulary of the emoji world; `python -m tuna_jax.emoji.world.vocabulary` writes it again."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tuna_jax.data.text import qwen_bpe
from tuna_jax.data.text.tokenizer import DEFAULT_SYSTEM, VOCABULARIES, Tokenizer
from tuna_jax.emoji.world.captions import captions, questions, sentence
from tuna_jax.emoji.world.clips import (
    MOTIONS,
    Clip,
    clip_captions,
    clip_questions,
    continuations,
)
from tuna_jax.emoji.world.combine import CombinationSource
from tuna_jax.emoji.world.dialogues import exchanges
from tuna_jax.emoji.world.edits import EditSource
from tuna_jax.emoji.world.hard.captions import bare_caption, caption, hard_questions
from tuna_jax.emoji.world.hard.scenes import HardSceneSource
from tuna_jax.emoji.world.scenes import (
    COUNTS,
    GROUNDS,
    GROUP_COUNTS,
    NAMES,
    PLACES,
    RELATIONS,
    Scene,
    Thing,
)

EMOJI = VOCABULARIES / "emoji.json"
# Descriptions of the texts that each vocabulary covers.
KINDS = {
    "emoji": "captions, questions and answers",
    "emoji_hard": "captions, questions and answers of the hard world",
    "emoji_all": "captions, questions, answers, instructions and dialogues, of pictures, edits and clips",
}
DESCRIPTION = (
    "Full token ids (Qwen2.5 with TUNA's four tokens) that the emoji world keeps: every token of its "
    "{}, of the chat template, the 256 byte tokens, and all special ones. "
    "The place in the list is the compact id. Written by `python -m tuna_jax.emoji.world.vocabulary`."
)


def _scenes() -> Iterator[Scene]:
    """Scenes that together have every name in every layout, and every ground."""
    for i, name in enumerate(NAMES):
        pair, ground = (name, NAMES[i - 1]), tuple(GROUNDS)[i % len(GROUNDS)]
        kinds: list[tuple[str, tuple[str, ...], tuple[int, ...], str, str]]
        kinds = [("single", (name,), (1,), place, "") for place in PLACES]
        kinds += [("count", (name,), (count,), "", "") for count in COUNTS]
        for relation in RELATIONS:
            kinds.append(("pair", pair, (1, 1), "", relation))
            kinds += [("groups", pair, counts, "", relation) for counts in GROUP_COUNTS]
        for layout, names, counts, place, relation in kinds:
            things = (Thing(name, 0, 0, 1),) * sum(
                counts
            )  # Texts depend on the number of objects, not on their boxes.
            yield Scene(layout, ground, GROUNDS[ground], things, names, counts, place, relation, 64)


def texts() -> Iterator[str]:
    """Texts that together contain every word of the emoji world in all of its forms."""
    yield from (f"system\n{DEFAULT_SYSTEM}", "user\n", "assistant\n")
    for scene in _scenes():
        phrasings = captions(scene)
        yield from phrasings
        yield from map(sentence, phrasings)
        for item in questions(scene):
            yield from (item.question, sentence(item.question), item.answer)
            yield f"{item.question} {item.answer}"


def all_texts() -> Iterator[str]:
    """`texts`, and those of edits, clips and dialogues."""
    yield from texts()
    for scene in _scenes():
        for exchange in exchanges(scene):
            for item in exchange:
                yield from (item.question, sentence(item.question), item.answer)
    clips = [
        Clip(name, motion, ground, GROUNDS[ground], 2, 64)
        for name, ground in zip(NAMES, itertools.cycle(GROUNDS))
        for motion in MOTIONS
    ]
    for clip in clips:
        phrasings = clip_captions(clip)
        yield from (*phrasings, *map(sentence, phrasings))
        for item in clip_questions(clip):
            yield from (item.question, sentence(item.question), item.answer)
        plain, named = continuations(clip)
        yield from (plain, named, sentence(named))
    # Nouns, places and grounds are in the texts above; a few thousand edits contain all other words.
    edits, combinations = EditSource(), CombinationSource()
    for index in range(4_000):
        texts_of = (*edits[index].instructions, *combinations[index].instructions)
        yield from (form for text in texts_of for form in (text, sentence(text)))


def hard_texts() -> Iterator[str]:
    """Texts that together contain every word of the hard world in all of its forms."""
    yield from (f"system\n{DEFAULT_SYSTEM}", "user\n", "assistant\n")
    for split in ("train", "test_bindings", "test_three", "test_counts"):
        source = HardSceneSource(split)
        # Every name occurs some hundred times, in every layout and with every number.
        for index in range(12_000 if split == "train" else 1_000):
            scene, random = source[index], np.random.default_rng(index)
            forms = [caption(scene, random, 0.5).text, bare_caption(scene).text]
            for item in hard_questions(scene):
                forms += [item.question, item.answer]
            for text in forms:
                yield from (text, sentence(text))
            yield from (f"{item.question} {item.answer}" for item in hard_questions(scene))


_TEXTS = {"emoji": texts, "emoji_hard": hard_texts, "emoji_all": all_texts}


def emoji_ids(kind: str = "emoji") -> list[int]:
    """The full ids of a vocabulary of the emoji world (a key of KINDS), ascending."""
    full = Tokenizer()
    ids = {full.id_of(character) for character in qwen_bpe.byte_characters()}
    ids |= {full.id_of(token) for token in (*qwen_bpe.QWEN_SPECIAL, *qwen_bpe.TUNA_SPECIAL)}
    for text in set(_TEXTS[kind]()):
        ids.update(full.encode(text))
    return sorted(ids)


def write(path: Path, kind: str = "emoji") -> int:
    """Writes the file of a vocabulary (a key of KINDS); returns its number of ids."""
    ids = emoji_ids(kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "description": DESCRIPTION.format(KINDS[kind]),
        "source_sha256": qwen_bpe.RANKS_SHA256,
        "ids": ids,
    }
    lines = json.dumps(content, indent=1).replace(",\n  ", ", ")
    path.write_text(lines + "\n", encoding="utf-8")
    return len(ids)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--kind", choices=KINDS, default="emoji", help="the vocabulary to write (default: emoji)"
    )
    parser.add_argument(
        "--output", type=Path, help="the JSON file; default: the one in the package"
    )
    arguments = parser.parse_args()
    output = arguments.output or VOCABULARIES / f"{arguments.kind}.json"
    print(f"{output}: {write(output, arguments.kind)} ids")


if __name__ == "__main__":
    main()
