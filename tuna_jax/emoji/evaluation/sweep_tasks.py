"""Tasks of the emoji world for sweeps: items of its held-out splits, judged as `emoji/evaluation/images.py` and its like do.

Item i is what `tuna_jax.evaluate` asks as its i-th, drawn from the same noise at the same seed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tuna_jax.emoji.evaluation import clips, edits
from tuna_jax.emoji.evaluation import images as tasks
from tuna_jax.emoji.evaluation.judges import ObjectJudge, judge_ground, judge_place
from tuna_jax.emoji.evaluation.report import ATTRIBUTION
from tuna_jax.emoji.world.captions import captions, questions
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
    Scene,
    SceneSource,
)
from tuna_jax.evaluation.metrics.accuracy import commonest_share
from tuna_jax.evaluation.metrics.psnr_ssim import capped_psnr
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.sweeps.task import DRAWING, SHOWING, Outcome, Task, seeds

_judge = functools.cache(ObjectJudge)
_LONGEST = 24


def _scene(split: str, index: int, side: int) -> Scene:
    return SceneSource(split, tasks.SEED, side)[index]


def draw_single(count: int = 64) -> Task:
    """One object: right by both judges, in its place, on its ground."""

    def run(model: Tuna, items: Sequence[int], seed: int) -> Outcome:
        drawn = _drawn(model, "test_single", items, seed)
        right = tasks.single_scores(drawn, _judge())[1]
        ground = [a == b for a, b in zip(judge_ground(drawn.images), drawn.grounds, strict=True)]
        asked = [scene.place for scene in drawn.scenes]
        place = [a == b for a, b in zip(judge_place(drawn.images), asked, strict=True)]
        return _pictured({"object": right, "ground": ground, "place": place}, drawn)

    chance = {"object": 1 / len(NAMES), "ground": 1 / len(GROUNDS), "place": 1 / len(PLACES)}
    return Task("draw_single", 1, count, {}, DRAWING, run, chance, "object", ATTRIBUTION)


def draw_pairs(count: int = 64) -> Task:
    """Two objects, each on its side, by both judges."""

    def run(model: Tuna, items: Sequence[int], seed: int) -> Outcome:
        drawn = _drawn(model, "test_pairs", items, seed)
        return _pictured({"position": tasks.pair_scores(drawn, _judge())[1]}, drawn)

    chance = {"position": 1 / (len(NAMES) * (len(NAMES) - 1) * len(RELATIONS))}
    return Task("draw_pairs", 1, count, {}, DRAWING, run, chance, "position", ATTRIBUTION)


def draw_counts(count: int = 64) -> Task:
    """Two to four of a kind, each in its cell, by both judges."""

    def run(model: Tuna, items: Sequence[int], seed: int) -> Outcome:
        drawn = _drawn(model, "test_counts", items, seed)
        return _pictured({"counted": tasks.count_scores(drawn, _judge())[1]}, drawn)

    chance = {"counted": 1 / (len(NAMES) * len(COUNT_CELLS))}
    return Task("draw_counts", 1, count, {}, DRAWING, run, chance, "counted", ATTRIBUTION)


def _drawn(model: Tuna, split: str, items: Sequence[int], seed: int) -> tasks.Drawn:
    scenes = tuple(_scene(split, i, model.size[0]) for i in items)
    known = [captions(scene) for scene in scenes]
    prompts = tuple(some[i % len(some)] for i, some in zip(items, known, strict=True))
    images = model.generate_image(prompts, seed=seeds(seed, items), batch_size=len(items))
    return tasks.Drawn(scenes, prompts, images)


def _pictured(right: Mapping[str, Any], drawn: tasks.Drawn) -> Outcome:
    values = {name: [float(one) for one in some] for name, some in right.items()}
    return Outcome(values, drawn.prompts, pictures=drawn.images)


def answer(question: str = "name", count: int = 64) -> Task:
    """One kind of question about held-out scenes; exact answers count.

    Args:
      question: name, ground, where, count, relation, list or describe.
      count: how many questions.

    Raises:
      ValueError: no such kind.
    """
    known = {kind: (splits, chance) for kind, splits, chance in tasks.ANSWER_TASKS.values()}
    if question not in known:
        raise ValueError(f"{question!r} is no kind of question; there are {', '.join(known)}")
    splits, chance = known[question]

    def item(index: int, side: int) -> tuple[Scene, Any]:
        scene = _scene(splits[index % len(splits)], index // len(splits), side)
        fitting = [one for one in questions(scene) if one.kind == question]
        return scene, fitting[index // len(splits) % len(fitting)]

    def run(model: Tuna, items: Sequence[int], seed: int) -> Outcome:
        del seed  # Answers are greedy.
        found = [item(i, model.size[0]) for i in items]
        shown = [render(scene)[None] for scene, _ in found]
        return _answered(model, shown, [q.question for _, q in found], [q.answer for _, q in found])

    if chance is None:
        chance = commonest_share([item(i, 64)[1].answer for i in range(count)])
    return Task(
        "answer",
        1,
        count,
        {"question": question},
        SHOWING,
        run,
        {"exact": chance},
        "exact",
        ATTRIBUTION,
    )


def answer_clips(question: str = "motion", count: int = 64, frames: int = 4) -> Task:
    """One kind of question about held-out clips; exact answers count.

    Args:
      question: motion, direction, name, ground or describe.
      count: how many questions.
      frames: pictures a clip.

    Raises:
      ValueError: no such kind.
    """
    if question not in CLIP_KINDS:
        raise ValueError(f"{question!r} is no kind of question; there are {', '.join(CLIP_KINDS)}")
    source = ClipSource("test", tasks.SEED, 64, frames=frames)
    # Not every clip can be asked everything: the first `count` that can.
    found, index = [], 0
    while len(found) < count:
        fitting = [one for one in clip_questions(source[index]) if one.kind == question]
        if fitting:
            found.append((index, fitting[len(found) % len(fitting)]))
        index += 1

    def run(model: Tuna, items: Sequence[int], seed: int) -> Outcome:
        del seed
        asked = [found[i] for i in items]
        shown = [render_clip(source[i]) for i, _ in asked]
        return _answered(model, shown, [q.question for _, q in asked], [q.answer for _, q in asked])

    known = {"motion": 1 / len(MOTIONS), "name": 1 / len(NAMES), "ground": 1 / len(GROUNDS)}
    chance = known.get(question, commonest_share([one.answer for _, one in found]))
    options = {"question": question, "frames": frames}
    return Task(
        "answer_clips", 1, count, options, SHOWING, run, {"exact": chance}, "exact", ATTRIBUTION
    )


def _answered(
    model: Tuna, shown: Sequence[np.ndarray], asked: Sequence[str], expected: Sequence[str]
) -> Outcome:
    put = [Conversation.of([clip], text) for clip, text in zip(shown, asked, strict=True)]
    texts = model.reply(put, max_new_tokens=_LONGEST, batch_size=len(put))
    exact = [float(a.strip() == b) for a, b in zip(texts, expected, strict=True)]
    return Outcome({"exact": exact}, asked, expected, texts, clips.strips(np.stack(shown)))


def converse(count: int = 48) -> Task:
    """Conversations of two to four turns, each after the model's own earlier answers.

    `dialogue` is 1 where all turns are exact, `turns` is the share of exact turns.
    """
    splits = ("test_single", "test_pairs", "test_counts")

    def run(model: Tuna, items: Sequence[int], seed: int) -> Outcome:
        del seed
        scenes = [_scene(splits[i % 3], i // 3, model.size[0]) for i in items]
        talks = [
            dialogue(scene, np.random.default_rng((tasks.SEED, i)))
            for i, scene in zip(items, scenes, strict=True)
        ]
        said: list[list[tuple[str, str]]] = [[] for _ in talks]
        for turn in range(max(map(len, talks))):
            # A conversation that has ended is asked its last question again, so that every call has as many rows.
            asked = [talk[min(turn, len(talk) - 1)].question for talk in talks]
            put = [
                Conversation.of([render(scene)[None]], question, history[:turn])
                for scene, question, history in zip(scenes, asked, said, strict=True)
            ]
            texts = model.reply(put, max_new_tokens=_LONGEST, template="chat", batch_size=len(put))
            for history, question, text in zip(said, asked, texts, strict=True):
                history.append((question, text.strip()))
        exact = [
            [text == one.answer for one, (_, text) in zip(talk, history, strict=False)]
            for talk, history in zip(talks, said, strict=True)
        ]
        values = {
            "dialogue": [float(all(right)) for right in exact],
            "turns": [float(np.mean(right)) for right in exact],
        }

        def joined(parts: Sequence[Sequence[str]]) -> list[str]:
            return [" / ".join(some) for some in parts]

        return Outcome(
            values,
            joined([[one.question for one in talk] for talk in talks]),
            joined([[one.answer for one in talk] for talk in talks]),
            joined([[t for _, t in h[: len(k)]] for h, k in zip(said, talks, strict=True)]),
            np.stack([render(scene) for scene in scenes]),
        )

    return Task("converse", 1, count, {}, SHOWING, run, {}, "dialogue", ATTRIBUTION)


def edit(count: int = 64) -> Task:
    """Edits whose targets are held out: right by the judges, by kind, and how well the rest is kept, in dB."""

    def run(model: Tuna, items: Sequence[int], seed: int) -> Outcome:
        source = EditSource("test", tasks.SEED, model.size[0])
        wanted = tuple(source[i] for i in items)
        said = tuple(
            one.instructions[i % len(one.instructions)]
            for i, one in zip(items, wanted, strict=True)
        )
        before = np.stack([render(one.source) for one in wanted])
        after = np.stack([render(one.target) for one in wanted])
        results = model.edit_image(
            list(before), said, seed=seeds(seed, items), batch_size=len(items)
        )
        made = edits.Edited(wanted, said, before, after, results)
        right = edits.verdicts(made, _judge()).astype(float)
        same = (before == after).all(-1)
        kept = [capped_psnr(a[s], b[s]) for a, b, s in zip(results, after, same, strict=True)]
        values: dict[str, Sequence[float]] = {"right": right.tolist(), "untouched_db": kept}
        for kind in EDITS:
            of_kind = [one.kind == kind for one in wanted]
            values[kind] = np.where(of_kind, right, np.nan).tolist()
        return Outcome(values, said, pictures=made.strips)

    return Task("edit", 1, count, {}, DRAWING, run, dict(edits.CHANCE), "right", ATTRIBUTION)


def draw_clips(count: int = 32, frames: int = 4) -> Task:
    """Held-out clips: object, ground and motion, and all three."""

    def run(model: Tuna, items: Sequence[int], seed: int) -> Outcome:
        source = ClipSource("test", tasks.SEED, model.size[0], frames=frames)
        wanted = tuple(source[i] for i in items)
        known = [clip_captions(clip) for clip in wanted]
        prompts = tuple(some[i % len(some)] for i, some in zip(items, known, strict=True))
        shown = model.generate_video(
            prompts, frames=frames, seed=seeds(seed, items), batch_size=len(items)
        )
        drawn = clips.DrawnClips(wanted, prompts, shown)
        right = clips.clip_verdicts(drawn, _judge())
        right["clip"] = np.logical_and.reduce(list(right.values()))
        values = {name: some.astype(float).tolist() for name, some in right.items()}
        return Outcome(values, prompts, pictures=drawn.strips)

    chance = {"object": 1 / len(NAMES), "ground": 1 / len(GROUNDS), "motion": 1 / len(MOTIONS)}
    return Task(
        "draw_clips", 1, count, {"frames": frames}, DRAWING, run, chance, "clip", ATTRIBUTION
    )


TASKS = {
    function.__name__: function
    for function in (
        draw_single,
        draw_pairs,
        draw_counts,
        answer,
        answer_clips,
        converse,
        edit,
        draw_clips,
    )
}
"""By name: functions of options that make a task."""
