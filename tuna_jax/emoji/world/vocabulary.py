"""The compact vocabulary of the emoji world: `python -m tuna_jax.emoji.world.vocabulary` writes it anew."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from tuna_jax.data.text import qwen_bpe
from tuna_jax.data.text.tokenizer import DEFAULT_SYSTEM, VOCABULARIES, Tokenizer
from tuna_jax.emoji.world.captions import captions, questions, sentence
from tuna_jax.emoji.world.clips import MOTIONS, Clip, clip_captions, clip_questions
from tuna_jax.emoji.world.dialogues import exchanges
from tuna_jax.emoji.world.edits import EditSource
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
# The texts that each vocabulary must hold, in words.
KINDS = {
    "emoji": "captions, questions and answers",
    "emoji_all": "captions, questions, answers, instructions and dialogues, of pictures, edits and clips",
}
DESCRIPTION = (
    "Full token ids (Qwen2.5 with TUNA's four tokens) that the emoji world keeps: every token of its "
    "{}, of the chat template, the 256 byte tokens, and all special ones. "
    "The place in the list is the compact id. Written by `python -m tuna_jax.emoji.world.vocabulary`."
)


def _scenes() -> Iterator[Scene]:
    """Scenes that between them have every name in every layout, and every ground."""
    for i, name in enumerate(NAMES):
        pair, ground = (name, NAMES[i - 1]), tuple(GROUNDS)[i % len(GROUNDS)]
        kinds: list[tuple[str, tuple[str, ...], tuple[int, ...], str, str]]
        kinds = [("single", (name,), (1,), place, "") for place in PLACES]
        kinds += [("count", (name,), (count,), "", "") for count in COUNTS]
        for relation in RELATIONS:
            kinds.append(("pair", pair, (1, 1), "", relation))
            kinds += [("groups", pair, counts, "", relation) for counts in GROUP_COUNTS]
        for layout, names, counts, place, relation in kinds:
            things = (Thing(name, 0, 0, 1),) * sum(counts)  # text tells how many, not where
            yield Scene(layout, ground, GROUNDS[ground], things, names, counts, place, relation, 64)


def texts() -> Iterator[str]:
    """Texts that between them hold every word of the emoji world in every form that it takes."""
    yield from (f"system\n{DEFAULT_SYSTEM}", "user\n", "assistant\n")
    for scene in _scenes():
        known = captions(scene)
        yield from known
        yield from map(sentence, known)
        for asked in questions(scene):
            yield from (asked.question, sentence(asked.question), asked.answer)
            yield f"{asked.question} {asked.answer}"


def all_texts() -> Iterator[str]:
    """`texts`, and those of edits, clips and dialogues."""
    yield from texts()
    for scene in _scenes():
        for exchange in exchanges(scene):
            for asked in exchange:
                yield from (asked.question, sentence(asked.question), asked.answer)
    clips = [
        Clip(name, motion, ground, GROUNDS[ground], 2, 64)
        for name, ground in zip(NAMES, itertools.cycle(GROUNDS))
        for motion in MOTIONS
    ]
    for clip in clips:
        known = clip_captions(clip)
        yield from (*known, *map(sentence, known))
        for asked in clip_questions(clip):
            yield from (asked.question, sentence(asked.question), asked.answer)
    edits = (
        EditSource()
    )  # Their nouns, places and grounds are above; a few thousand have all that is between.
    for index in range(4_000):
        yield from (form for text in edits[index].instructions for form in (text, sentence(text)))


def emoji_ids(kind: str = "emoji") -> list[int]:
    """The full ids that a kind of the emoji world (KINDS) keeps, ascending."""
    full = Tokenizer()
    ids = {full.id_of(character) for character in qwen_bpe.byte_characters()}
    ids |= {full.id_of(token) for token in (*qwen_bpe.QWEN_SPECIAL, *qwen_bpe.TUNA_SPECIAL)}
    for text in set(texts() if kind == "emoji" else all_texts()):
        ids.update(full.encode(text))
    return sorted(ids)


def write(path: Path, kind: str = "emoji") -> int:
    """Writes the vocabulary file of a kind (KINDS); returns how many ids it has."""
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
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, default="emoji", help="whose texts it holds")
    parser.add_argument("--output", type=Path, help="the JSON file; default: the one that ships")
    arguments = parser.parse_args()
    output = arguments.output or VOCABULARIES / f"{arguments.kind}.json"
    print(f"{output}: {write(output, arguments.kind)} ids")


if __name__ == "__main__":
    main()
