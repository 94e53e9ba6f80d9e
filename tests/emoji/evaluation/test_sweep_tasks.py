"""Tasks of the emoji world: a model that knows the truth gets everything right, one that does not gets it wrong."""

import math

import numpy as np
import pytest

from tuna_jax.emoji.evaluation import images as tasks
from tuna_jax.emoji.evaluation import sweep_tasks
from tuna_jax.emoji.evaluation.sweep_tasks import TASKS
from tuna_jax.emoji.world.captions import captions, questions
from tuna_jax.emoji.world.clips import ClipSource, clip_captions, clip_questions, render_clip
from tuna_jax.emoji.world.edits import EditSource
from tuna_jax.emoji.world.rendering import render
from tuna_jax.emoji.world.scenes import SceneSource
from tuna_jax.inference.pipeline import Model

COUNT = 10


class Knowing(Model):
    """Draws the scene that a caption of the splits is of, and answers as the scene says; keeps the seeds."""

    def __init__(self):
        own = {"size": (64, 64), "seeds": [], "_drawings": {}, "_answers": {}}
        for name, value in own.items():
            object.__setattr__(self, name, value)
        for split in ("test_single", "test_pairs", "test_counts"):
            for i in range(COUNT):
                scene = SceneSource(split, tasks.SEED, 64)[i]
                self._drawings.update(dict.fromkeys(captions(scene), render(scene)))
                shown = render(scene)[None].tobytes()
                answers = {(shown, one.question): one.answer for one in questions(scene)}
                self._answers.update(answers)
        for i in range(4 * COUNT):
            clip = ClipSource("test", tasks.SEED, 64, frames=4)[i]
            shown = render_clip(clip)
            self._drawings.update(dict.fromkeys(clip_captions(clip), shown))
            answers = {(shown.tobytes(), q.question): q.answer for q in clip_questions(clip)}
            self._answers.update(answers)

    def generate_image(self, prompts, *, seed, batch_size):
        self.seeds.append(seed)
        return np.stack([self._drawings[prompt] for prompt in prompts])

    def generate_video(self, prompts, *, frames, seed, batch_size):
        return self.generate_image(prompts, seed=seed, batch_size=batch_size)

    def edit_image(self, pictures, instructions, *, seed, batch_size):
        self.seeds.append(seed)
        source = EditSource("test", tasks.SEED, 64)
        made = [render(source[place].target) for _, place in seed]
        for (_, place), picture in zip(seed, pictures, strict=True):
            np.testing.assert_array_equal(picture, render(source[place].source))
        return np.stack(made)

    def reply(self, conversations, *, max_new_tokens, batch_size, template=None):
        asked = [one.messages[-1]["content"].removeprefix("<image>\n") for one in conversations]
        shown = [one.shown[0].tobytes() for one in conversations]
        return [f" {self._answers.get(pair, '?')}" for pair in zip(shown, asked, strict=True)]


class Wrong(Knowing):
    """Has everything of the next item."""

    def generate_image(self, prompts, **options):
        return np.roll(super().generate_image(prompts, **options), 1, axis=0)

    def edit_image(self, pictures, instructions, **options):
        super().edit_image(pictures, instructions, **options)
        return np.stack(pictures)

    def reply(self, conversations, **options):
        return ["?"] * len(conversations)


CASES = {
    "draw_single": {"object", "ground", "place"},
    "draw_pairs": {"position"},
    "draw_counts": {"counted"},
    "answer": {"exact"},
    "answer_clips": {"exact"},
    "edit": {"right", "replace", "recolour", "move", "remove"},
    "draw_clips": {"object", "ground", "motion", "clip"},
}


def means(outcome, names):
    return {name: np.nanmean(np.array(outcome.values[name], float)) for name in names}


@pytest.mark.parametrize("name", CASES)
def test_what_is_true_is_right_and_what_is_not_is_wrong(name):
    task = TASKS[name](count=COUNT)
    outcome = task.run(Knowing(), range(COUNT), 7)
    outcome.check(COUNT)
    assert task.kind == name and task.verdict in CASES[name] <= set(outcome.values)
    assert set(task.chance) <= set(outcome.values)
    assert set(means(outcome, CASES[name]).values()) == {1.0}
    wrong = task.run(Wrong(), range(COUNT), 7)
    assert means(wrong, [task.verdict])[task.verdict] <= 0.2


@pytest.mark.parametrize("name", [*CASES, "converse"])
def test_an_item_is_the_same_whatever_is_asked_beside_it(name):
    task = TASKS[name](count=COUNT)
    whole, some = task.run(Knowing(), range(COUNT), 7), task.run(Knowing(), [7, 2, 2], 7)
    for mine, theirs in (
        (some.prompts, whole.prompts),
        *((some.values[m], whole.values[m]) for m in whole.values),
    ):
        np.testing.assert_array_equal(list(mine), [theirs[7], theirs[2], theirs[2]])
    np.testing.assert_array_equal(some.pictures, whole.pictures[[7, 2, 2]])


def test_noise_is_of_the_item():
    model = Knowing()
    TASKS["draw_single"](count=COUNT).run(model, [3, 5], 9)
    TASKS["edit"](count=COUNT).run(model, [4], 9)
    assert model.seeds == [[(9, 3), (9, 5)], [(9, 4)]]


def test_the_untouched_part_of_an_edit_is_measured():
    task = TASKS["edit"](count=COUNT)
    kept = task.run(Knowing(), range(COUNT), 7).values["untouched_db"]
    assert min(kept) == pytest.approx(114)
    assert sum(math.isnan(v) for v in task.run(Knowing(), [0], 7).values.values() for v in v) == 3


def test_items_are_those_of_the_usual_evaluation():
    model = Knowing()
    drawn = tasks.draw_split(
        lambda prompts, seed: model.generate_image(prompts, seed=seed, batch_size=1),
        "test_pairs",
        COUNT,
    )
    assert TASKS["draw_pairs"](count=COUNT).run(model, range(COUNT), 7).prompts == drawn.prompts
    _, given = tasks.ask(lambda images, asked: ["?"] * len(asked), "where_answer_accuracy", COUNT)
    outcome = TASKS["answer"](question="where", count=COUNT).run(model, range(COUNT), 7)
    assert outcome.prompts == [one.question for one in given]
    assert outcome.expected == [one.expected for one in given]


def test_a_kind_of_question_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="'colour' is no kind of question; there are name"):
        sweep_tasks.answer("colour")
    with pytest.raises(ValueError, match="'where' is no kind of question; there are motion"):
        sweep_tasks.answer_clips("where")
