"""Tasks of the emoji world for sweeps: items of its held-out splits, scored by the judges of this package.

Item i is the i-th item of `suite.measure`, generated from the same noise with the same seed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tuna_jax.emoji.evaluation import clips, edits, images
from tuna_jax.emoji.evaluation.judges import ObjectJudge, judge_ground, judge_place
from tuna_jax.emoji.evaluation.report import ATTRIBUTION
from tuna_jax.emoji.world.captions import Question, captions, questions
from tuna_jax.emoji.world.clips import (
    CLIP_KINDS,
    MOTIONS,
    ClipSource,
    clip_captions,
    clip_questions,
    render_clip,
)
from tuna_jax.emoji.world.dialogues import dialogue
from tuna_jax.emoji.world.edits import EDITS, EditSource
from tuna_jax.emoji.world.rendering import render
from tuna_jax.emoji.world.scenes import (
    COUNT_CELLS,
    GROUNDS,
    NAMES,
    PLACES,
    RELATIONS,
    VOCABULARY,
    Scene,
    SceneSource,
)
from tuna_jax.evaluation.metrics.accuracy import commonest_share
from tuna_jax.evaluation.metrics.psnr_ssim import capped_psnr
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.sweeps.task import GENERATION_SETTINGS, UNDERSTANDING_SETTINGS, Outcome, Task, seeds

# The `kind` of a task is hashed into the keys of stored results. It therefore keeps the string of the first version
# ("draw_single" for `generate_single`), so that results stored before the tasks were renamed stay valid.


@functools.cache
def shared_judge(names: str = "demo") -> ObjectJudge:
    """The judge that chooses from the demo's names; with new ones, from all. Its galleries take seconds to build."""
    return ObjectJudge(names=VOCABULARY["demo" if names == "demo" else "all"])


_MAX_NEW_TOKENS = 24


def _scene(split: str, index: int, side: int, names: str = "demo") -> Scene:
    return SceneSource(split, images.SEED, side, names=VOCABULARY[names])[index]


def _checked(names: str) -> dict[str, str]:
    """The option as results are stored under it; that of the first version is not named."""
    if names not in VOCABULARY:
        raise ValueError(f"names is {names!r}; choose one of {', '.join(VOCABULARY)}")
    return {} if names == "demo" else {"names": names}


def generate_single(count: int = 64, names: str = "demo") -> Task:
    """Images of one object: the object according to both judges, its place, and the ground.

    Args:
      count: number of images.
      names: of the objects, a key of `scenes.VOCABULARY`.
    """
    options = _checked(names)

    def run(model: Tuna, items: Sequence[int], seed: int) -> Outcome:
        generated = _generate(model, "test_single", items, seed, names)
        right = images.single_scores(generated, shared_judge(names))[1]
        grounds = judge_ground(generated.images)
        ground = [a == b for a, b in zip(grounds, generated.grounds, strict=True)]
        places = [scene.place for scene in generated.scenes]
        place = [a == b for a, b in zip(judge_place(generated.images), places, strict=True)]
        return _outcome({"object": right, "ground": ground, "place": place}, generated)

    known = len(shared_judge(names).names)
    chance = {"object": 1 / known, "ground": 1 / len(GROUNDS), "place": 1 / len(PLACES)}
    return Task(
        "draw_single", 1, count, options, GENERATION_SETTINGS, run, chance, "object", ATTRIBUTION
    )


def generate_pairs(count: int = 64, names: str = "demo") -> Task:
    """Images of two objects: each on its side, according to both judges; arguments as of `generate_single`."""
    options = _checked(names)

    def run(model: Tuna, items: Sequence[int], seed: int) -> Outcome:
        generated = _generate(model, "test_pairs", items, seed, names)
        right = images.pair_scores(generated, shared_judge(names))[1]
        return _outcome({"position": right}, generated)

    known = len(shared_judge(names).names)
    chance = {"position": 1 / (known * (known - 1) * len(RELATIONS))}
    return Task(
        "draw_pairs", 1, count, options, GENERATION_SETTINGS, run, chance, "position", ATTRIBUTION
    )


def generate_counts(count: int = 64) -> Task:
    """Images of two to four objects of one kind: each in its cell, according to both judges."""

    def run(model: Tuna, items: Sequence[int], seed: int) -> Outcome:
        generated = _generate(model, "test_counts", items, seed)
        return _outcome({"counted": images.count_scores(generated, shared_judge())[1]}, generated)

    chance = {"counted": 1 / (len(NAMES) * len(COUNT_CELLS))}
    return Task(
        "draw_counts", 1, count, {}, GENERATION_SETTINGS, run, chance, "counted", ATTRIBUTION
    )


def _generate(
    model: Tuna, split: str, items: Sequence[int], seed: int, names: str = "demo"
) -> images.GeneratedScenes:
    scenes = tuple(_scene(split, i, model.size[0], names) for i in items)
    phrasings = [captions(scene) for scene in scenes]
    prompts = tuple(texts[i % len(texts)] for i, texts in zip(items, phrasings, strict=True))
    generated = model.generate_image(prompts, seed=seeds(seed, items), batch_size=len(items))
    return images.GeneratedScenes(scenes, prompts, generated)


def _outcome(right: Mapping[str, Any], generated: images.GeneratedScenes) -> Outcome:
    values = {name: [float(verdict) for verdict in verdicts] for name, verdicts in right.items()}
    return Outcome(values, generated.prompts, pictures=generated.images)


def answer(question: str = "name", count: int = 64, names: str = "demo") -> Task:
    """One kind of question about held-out scenes; only exact answers are right.

    Args:
      question: name, ground, where, count, relation, list or describe.
      count: number of questions.
      names: of the objects, a key of `scenes.VOCABULARY`.

    Raises:
      ValueError: an unknown kind of question, or unknown names.
    """
    chosen_names = _checked(names)
    kinds = {kind: (splits, chance) for kind, splits, chance in images.ANSWER_TASKS.values()}
    if question not in kinds:
        raise ValueError(
            f"{question!r} is not a kind of question; the kinds are {', '.join(kinds)}"
        )
    splits, chance = kinds[question]

    def item(index: int, side: int) -> tuple[Scene, Question]:
        scene = _scene(splits[index % len(splits)], index // len(splits), side, names)
        fitting = [candidate for candidate in questions(scene) if candidate.kind == question]
        return scene, fitting[index // len(splits) % len(fitting)]

    def run(model: Tuna, items: Sequence[int], seed: int) -> Outcome:
        del seed  # Answers are greedy.
        chosen = [item(i, model.size[0]) for i in items]
        media = [render(scene)[None] for scene, _ in chosen]
        return _answer(model, media, [candidate for _, candidate in chosen])

    if chance is None:
        chance = commonest_share([item(i, 64)[1].answer for i in range(count)])
    options = {"question": question, **chosen_names}
    return Task(
        "answer",
        1,
        count,
        options,
        UNDERSTANDING_SETTINGS,
        run,
        {"exact": chance},
        "exact",
        ATTRIBUTION,
    )


def answer_clips(question: str = "motion", count: int = 64, frames: int = 4) -> Task:
    """One kind of question about held-out clips; only exact answers are right.

    Args:
      question: motion, direction, name, ground or describe.
      count: number of questions.
      frames: frames per clip.

    Raises:
      ValueError: an unknown kind of question.
    """
    if question not in CLIP_KINDS:
        raise ValueError(
            f"{question!r} is not a kind of question; the kinds are {', '.join(CLIP_KINDS)}"
        )
    source = ClipSource("test", images.SEED, 64, frames=frames)
    # Not every clip has a question of every kind: take the first `count` clips that have one.
    chosen: list[tuple[int, Question]] = []
    index = 0
    while len(chosen) < count:
        fitting = [
            candidate for candidate in clip_questions(source[index]) if candidate.kind == question
        ]
        if fitting:
            chosen.append((index, fitting[len(chosen) % len(fitting)]))
        index += 1

    def run(model: Tuna, items: Sequence[int], seed: int) -> Outcome:
        del seed  # Answers are greedy.
        media = [render_clip(source[chosen[i][0]]) for i in items]
        return _answer(model, media, [chosen[i][1] for i in items])

    chances = {"motion": 1 / len(MOTIONS), "name": 1 / len(NAMES), "ground": 1 / len(GROUNDS)}
    chance = chances.get(question, commonest_share([item.answer for _, item in chosen]))
    options = {"question": question, "frames": frames}
    return Task(
        "answer_clips",
        1,
        count,
        options,
        UNDERSTANDING_SETTINGS,
        run,
        {"exact": chance},
        "exact",
        ATTRIBUTION,
    )


def _answer(model: Tuna, media: Sequence[np.ndarray], chosen: Sequence[Question]) -> Outcome:
    prompts, expected = [item.question for item in chosen], [item.answer for item in chosen]
    conversations = [
        Conversation.of([clip], prompt) for clip, prompt in zip(media, prompts, strict=True)
    ]
    texts = model.reply(
        conversations, max_new_tokens=_MAX_NEW_TOKENS, batch_size=len(conversations)
    )
    exact = [float(a.strip() == b) for a, b in zip(texts, expected, strict=True)]
    return Outcome({"exact": exact}, prompts, expected, texts, clips.strips(np.stack(media)))


def converse(count: int = 48) -> Task:
    """Conversations of two to four turns; each question follows the model's own earlier answers.

    `dialogue` is 1 if all turns are exact, `turns` is the share of exact turns.
    """
    splits = ("test_single", "test_pairs", "test_counts")

    def run(model: Tuna, items: Sequence[int], seed: int) -> Outcome:
        del seed  # Answers are greedy.
        scenes = [_scene(splits[i % 3], i // 3, model.size[0]) for i in items]
        dialogues = [
            dialogue(scene, np.random.default_rng((images.SEED, i)))
            for i, scene in zip(items, scenes, strict=True)
        ]
        histories: list[list[tuple[str, str]]] = [[] for _ in dialogues]
        for turn in range(max(map(len, dialogues))):
            # A dialogue that has ended repeats its last question, so that every call has the same number of rows.
            prompts = [turns[min(turn, len(turns) - 1)].question for turns in dialogues]
            conversations = [
                Conversation.of([render(scene)[None]], prompt, history[:turn])
                for scene, prompt, history in zip(scenes, prompts, histories, strict=True)
            ]
            texts = model.reply(
                conversations,
                max_new_tokens=_MAX_NEW_TOKENS,
                template="chat",
                batch_size=len(conversations),
            )
            for history, prompt, text in zip(histories, prompts, texts, strict=True):
                history.append((prompt, text.strip()))
        exact = [
            [text == item.answer for item, (_, text) in zip(turns, history, strict=False)]
            for turns, history in zip(dialogues, histories, strict=True)
        ]
        values = {
            "dialogue": [float(all(right)) for right in exact],
            "turns": [float(np.mean(right)) for right in exact],
        }

        def joined(parts: Sequence[Sequence[str]]) -> list[str]:
            return [" / ".join(texts) for texts in parts]

        return Outcome(
            values,
            joined([[item.question for item in turns] for turns in dialogues]),
            joined([[item.answer for item in turns] for turns in dialogues]),
            joined(
                [
                    [text for _, text in history[: len(turns)]]
                    for history, turns in zip(histories, dialogues, strict=True)
                ]
            ),
            np.stack([render(scene) for scene in scenes]),
        )

    return Task("converse", 1, count, {}, UNDERSTANDING_SETTINGS, run, {}, "dialogue", ATTRIBUTION)


def edit(count: int = 64) -> Task:
    """Edits with held-out targets: right according to the judges, also by kind; and the PSNR of the rest in dB."""

    def run(model: Tuna, items: Sequence[int], seed: int) -> Outcome:
        source = EditSource("test", images.SEED, model.size[0])
        chosen = tuple(source[i] for i in items)
        instructions = tuple(
            item.instructions[i % len(item.instructions)]
            for i, item in zip(items, chosen, strict=True)
        )
        before = np.stack([render(item.source) for item in chosen])
        after = np.stack([render(item.target) for item in chosen])
        results = model.edit_image(
            list(before), instructions, seed=seeds(seed, items), batch_size=len(items)
        )
        edited = edits.EditedImages(chosen, instructions, before, after, results)
        right = edits.verdicts(edited, shared_judge()).astype(float)
        same = (before == after).all(-1)
        untouched = [capped_psnr(a[s], b[s]) for a, b, s in zip(results, after, same, strict=True)]
        values: dict[str, Sequence[float]] = {"right": right.tolist(), "untouched_db": untouched}
        for kind in EDITS:
            of_kind = [item.kind == kind for item in chosen]
            values[kind] = np.where(of_kind, right, np.nan).tolist()
        return Outcome(values, instructions, pictures=edited.strips)

    return Task(
        "edit", 1, count, {}, GENERATION_SETTINGS, run, dict(edits.CHANCE), "right", ATTRIBUTION
    )


def generate_clips(count: int = 32, frames: int = 4) -> Task:
    """Held-out clips: object, ground, motion, and all three together."""

    def run(model: Tuna, items: Sequence[int], seed: int) -> Outcome:
        source = ClipSource("test", images.SEED, model.size[0], frames=frames)
        chosen = tuple(source[i] for i in items)
        phrasings = [clip_captions(clip) for clip in chosen]
        prompts = tuple(texts[i % len(texts)] for i, texts in zip(items, phrasings, strict=True))
        result = model.generate_video(
            prompts, frames=frames, seed=seeds(seed, items), batch_size=len(items)
        )
        generated = clips.GeneratedClips(chosen, prompts, result)
        right = clips.judge_clips(generated, shared_judge())
        right["clip"] = np.logical_and.reduce(list(right.values()))
        values = {name: verdicts.astype(float).tolist() for name, verdicts in right.items()}
        return Outcome(values, prompts, pictures=generated.strips)

    chance = {"object": 1 / len(NAMES), "ground": 1 / len(GROUNDS), "motion": 1 / len(MOTIONS)}
    return Task(
        "draw_clips",
        1,
        count,
        {"frames": frames},
        GENERATION_SETTINGS,
        run,
        chance,
        "clip",
        ATTRIBUTION,
    )


TASKS = {
    function.__name__: function
    for function in (
        generate_single,
        generate_pairs,
        generate_counts,
        answer,
        answer_clips,
        converse,
        edit,
        generate_clips,
    )
}
"""Name -> function of options that returns a task."""
