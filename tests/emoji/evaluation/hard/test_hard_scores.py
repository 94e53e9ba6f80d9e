"""Scores of the hard world, with models that are perfect, that ignore the caption, or that bind attributes wrongly."""

import dataclasses

import numpy as np
import pytest

from tuna_jax.emoji.evaluation import report
from tuna_jax.emoji.evaluation.hard import items, scores
from tuna_jax.emoji.evaluation.hard.suite import measure_hard
from tuna_jax.emoji.world.hard.captions import KINDS
from tuna_jax.emoji.world.hard.rendering import render_hard

COUNT = 60


@pytest.fixture(scope="module")
def prompted():
    return {kind: items.prompts(kind, COUNT) for kind in items.PROMPTS}


def perfect(*parts):
    """A model that renders the scene from which each prompt was made."""
    scenes = {text: scene for p in parts for text, scene in zip(p.texts, p.scenes, strict=True)}
    return lambda prompts, seeds: np.stack([render_hard(scenes[text]) for text in prompts])


def test_a_perfect_model_has_everything_right(prompted, hard_judge):
    parts = [
        scores.generated(p, perfect(*prompted.values()), hard_judge) for p in prompted.values()
    ]
    found = scores.generation_scores(parts)
    assert tuple(found) == scores.GENERATION_SCORES
    for name, score in found.items():
        assert score.value == 1 and score.count > 5, name
        assert score.chance < 0.2 and score.ci95[1] == 1, name
    assert found["hard_full_accuracy"].count == COUNT
    assert set(found["hard_count_accuracy"].by) <= {"two", "three", "four", "five"}
    assert set(found["hard_full_accuracy"].by) == {
        s.removeprefix("test_") for s in items.TEST_SPLITS
    }


def test_a_model_that_ignores_its_caption_is_at_chance(prompted, hard_judge):
    part = prompted["partial"]
    model = perfect(part)

    def ignorant(prompts, seeds):
        return model([*prompts[1:], *prompts[:1]], seeds)

    found = scores.generation_scores([scores.generated(part, ignorant, hard_judge)])
    assert found["hard_partial_accuracy"].value < 0.05
    assert found["hard_ground_accuracy"].value < 0.4


def test_attributes_of_the_wrong_object_fail_binding_alone(prompted, hard_judge):
    part = prompted["full"]

    def swap(scene):
        if len(scene.groups) != 2 or not all(group.colour for group in scene.groups):
            return scene
        one, other = scene.groups
        groups = (
            dataclasses.replace(one, colour=other.colour),
            dataclasses.replace(other, colour=one.colour),
        )
        return dataclasses.replace(scene, groups=groups)

    images = np.stack([render_hard(swap(scene)) for scene in part.scenes])
    found = scores.generation_scores([part.with_images(images, hard_judge)])
    assert found["hard_binding_accuracy"].value == 0
    assert found["hard_object_accuracy"].value == 1 and found["hard_place_accuracy"].value == 1


def test_prompts_are_deterministic_and_leave_things_open(prompted):
    assert items.prompts("partial", 20) == dataclasses.replace(
        prompted["partial"],
        **{
            name: getattr(prompted["partial"], name)[:20]
            for name in ("splits", "scenes", "captions", "seeds")
        },
    )
    assert items.prompts("partial", 20, seed=8).texts != prompted["partial"].texts[:20]
    assert all(claims.relations for claims in prompted["relation"].claims)
    assert len({seed for p in prompted.values() for seed in p.seeds}) == 3 * COUNT
    with pytest.raises(ValueError, match="partial"):
        items.prompts("short", 3)


def test_pictures_of_the_wrong_kind_are_an_error(prompted, hard_judge):
    part = prompted["full"]
    with pytest.raises(ValueError, match="uint8"):
        part.with_images(np.zeros((COUNT, 64, 64, 3), np.uint8), hard_judge)
    with pytest.raises(ValueError, match="60 prompts"):
        part.with_images(np.zeros((COUNT - 1, 96, 96, 3), np.uint8), hard_judge)


@pytest.mark.parametrize("kind", KINDS)
def test_only_exact_answers_are_right(kind):
    asked = []

    def silent(images, questions):
        asked.extend(questions)
        return [""] * len(questions)

    score, answered = scores.ask_hard(silent, kind, 8)
    assert score.value == 0 and score.count == 8 == len(asked)
    assert score.chance < 0.7
    answers = iter([item.expected for item in answered])
    score, _ = scores.ask_hard(
        lambda images, questions: [next(answers) for _ in questions], kind, 8
    )
    assert score.value == 1
    with pytest.raises(ValueError, match="8 questions"):
        scores.ask_hard(lambda images, questions: ["a"], kind, 8)


def test_an_unknown_kind_of_question_is_an_error():
    with pytest.raises(KeyError, match="describe"):
        scores.ask_hard(lambda images, questions: [], "place", 4)


def test_the_whole_evaluation_and_its_report(hard_judge, tmp_path):
    scenes = {}
    for kind, count in (("full", 12), ("partial", 12), ("relation", 6)):
        part = items.prompts(kind, count)
        scenes |= dict(zip(part.texts, part.scenes, strict=True))

    def generate(prompts, seeds):
        assert len(prompts) == len(seeds)
        blank = np.full((96, 96, 3), 200, np.uint8)
        return np.stack([render_hard(scenes[p]) if p in scenes else blank for p in prompts])

    evaluation = measure_hard(
        generate,
        lambda images, questions: ["red"] * len(questions),
        reconstruct=lambda images: images,
        judge=hard_judge,
        generations=12,
        questions=8,
    )
    assert set(evaluation.scores) | set(evaluation.distances) <= set(report.MEANING)
    assert evaluation.scores["hard_full_accuracy"].value == 1
    assert evaluation.ceilings["hard_relation_accuracy"].value == 1
    assert evaluation.scores["hard_diversity"].value == 0  # Nothing but plain ground.
    page = report.write(tmp_path, evaluation).read_text(encoding="utf-8")
    assert "Distances from the world" in page and "Captions that leave things open" in page
    assert "hard_frechet_distance" in (tmp_path / "summary.json").read_text(encoding="utf-8")
