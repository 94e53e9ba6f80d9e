"""Sweep tasks of the emoji world, with a model that knows the truth and one that does not."""

import math

import numpy as np
import pytest

from tuna_jax.emoji.evaluation import images, sweep_tasks
from tuna_jax.emoji.evaluation.sweep_tasks import TASKS
from tuna_jax.emoji.world.captions import captions, questions
from tuna_jax.emoji.world.clips import ClipSource, clip_captions, clip_questions, render_clip
from tuna_jax.emoji.world.edits import EditSource
from tuna_jax.emoji.world.rendering import render
from tuna_jax.emoji.world.scenes import SceneSource
from tuna_jax.inference.pipeline import Tuna

COUNT = 10


class PerfectModel(Tuna):
    """Generates the scene of a caption of the test splits, answers exactly, and records the seeds."""

    def __init__(self):
        attributes = {"size": (64, 64), "seeds": [], "_images": {}, "_answers": {}}
        for name, value in attributes.items():
            object.__setattr__(self, name, value)
        for split in ("test_single", "test_pairs", "test_counts"):
            for i in range(COUNT):
                scene = SceneSource(split, images.SEED, 64)[i]
                self._images.update(dict.fromkeys(captions(scene), render(scene)))
                media = render(scene)[None].tobytes()
                answers = {(media, item.question): item.answer for item in questions(scene)}
                self._answers.update(answers)
        for i in range(4 * COUNT):
            clip = ClipSource("test", images.SEED, 64, frames=4)[i]
            frames = render_clip(clip)
            self._images.update(dict.fromkeys(clip_captions(clip), frames))
            answers = {(frames.tobytes(), q.question): q.answer for q in clip_questions(clip)}
            self._answers.update(answers)

    def generate_image(self, prompts, *, seed, batch_size):
        self.seeds.append(seed)
        return np.stack([self._images[prompt] for prompt in prompts])

    def generate_video(self, prompts, *, frames, seed, batch_size):
        return self.generate_image(prompts, seed=seed, batch_size=batch_size)

    def edit_image(self, pictures, instructions, *, seed, batch_size):
        self.seeds.append(seed)
        source = EditSource("test", images.SEED, 64)
        for (_, item), picture in zip(seed, pictures, strict=True):
            np.testing.assert_array_equal(picture, render(source[item].source))
        return np.stack([render(source[item].target) for _, item in seed])

    def reply(self, conversations, *, max_new_tokens, batch_size, template=None):
        prompts = [item.messages[-1]["content"].removeprefix("<image>\n") for item in conversations]
        media = [item.media[0].tobytes() for item in conversations]
        return [f" {self._answers.get(pair, '?')}" for pair in zip(media, prompts, strict=True)]


class WrongModel(PerfectModel):
    """Generates the scene of another item, returns the source of an edit, and answers '?'."""

    def generate_image(self, prompts, **options):
        return np.roll(super().generate_image(prompts, **options), 1, axis=0)

    def edit_image(self, pictures, instructions, **options):
        super().edit_image(pictures, instructions, **options)
        return np.stack(pictures)

    def reply(self, conversations, **options):
        return ["?"] * len(conversations)


CASES = {
    "generate_single": {"object", "ground", "place"},
    "generate_pairs": {"position"},
    "generate_counts": {"counted"},
    "answer": {"exact"},
    "answer_clips": {"exact"},
    "edit": {"right", "replace", "recolour", "move", "remove"},
    "generate_clips": {"object", "ground", "motion", "clip"},
}


def means(outcome, names):
    return {name: np.nanmean(np.array(outcome.values[name], float)) for name in names}


def test_kinds_of_stored_results_are_unchanged():
    """`kind` is part of the key of a stored result; it keeps the names of the first version."""
    kinds = {name: task().kind for name, task in TASKS.items()}
    renamed = {name: kind for name, kind in kinds.items() if name != kind}
    assert renamed == {
        "generate_single": "draw_single",
        "generate_pairs": "draw_pairs",
        "generate_counts": "draw_counts",
        "generate_clips": "draw_clips",
    }


@pytest.mark.parametrize("name", CASES)
def test_true_results_are_right_and_others_wrong(name):
    task = TASKS[name](count=COUNT)
    outcome = task.run(PerfectModel(), range(COUNT), 7)
    outcome.check(COUNT)
    assert task.verdict in CASES[name] <= set(outcome.values)
    assert set(task.chance) <= set(outcome.values)
    assert set(means(outcome, CASES[name]).values()) == {1.0}
    wrong = task.run(WrongModel(), range(COUNT), 7)
    assert means(wrong, [task.verdict])[task.verdict] <= 0.2


@pytest.mark.parametrize("name", [*CASES, "converse"])
def test_an_item_does_not_depend_on_the_others(name):
    task = TASKS[name](count=COUNT)
    whole, part = task.run(PerfectModel(), range(COUNT), 7), task.run(PerfectModel(), [7, 2, 2], 7)
    pairs = [(part.prompts, whole.prompts)]
    pairs += [(part.values[metric], whole.values[metric]) for metric in whole.values]
    for a, b in pairs:
        np.testing.assert_array_equal(list(a), [b[7], b[2], b[2]])
    np.testing.assert_array_equal(part.pictures, whole.pictures[[7, 2, 2]])


def test_noise_depends_on_the_item():
    model = PerfectModel()
    TASKS["generate_single"](count=COUNT).run(model, [3, 5], 9)
    TASKS["edit"](count=COUNT).run(model, [4], 9)
    assert model.seeds == [[(9, 3), (9, 5)], [(9, 4)]]


def test_the_untouched_part_of_an_edit_is_measured():
    task = TASKS["edit"](count=COUNT)
    kept = task.run(PerfectModel(), range(COUNT), 7).values["untouched_db"]
    assert min(kept) == pytest.approx(114)
    assert (
        sum(math.isnan(v) for v in task.run(PerfectModel(), [0], 7).values.values() for v in v) == 3
    )


def test_items_are_those_of_the_suite():
    model = PerfectModel()
    generated = images.generate_split(
        lambda prompts, seed: model.generate_image(prompts, seed=seed, batch_size=1),
        "test_pairs",
        COUNT,
    )
    assert (
        TASKS["generate_pairs"](count=COUNT).run(model, range(COUNT), 7).prompts
        == generated.prompts
    )
    _, answered = images.ask(
        lambda media, prompts: ["?"] * len(prompts), "where_answer_accuracy", COUNT
    )
    outcome = TASKS["answer"](question="where", count=COUNT).run(model, range(COUNT), 7)
    assert outcome.prompts == [item.question for item in answered]
    assert outcome.expected == [item.expected for item in answered]


def test_an_unknown_kind_of_question_is_an_error():
    with pytest.raises(ValueError, match="'colour'.*name"):
        sweep_tasks.answer("colour")
    with pytest.raises(ValueError, match="'where'.*motion"):
        sweep_tasks.answer_clips("where")
