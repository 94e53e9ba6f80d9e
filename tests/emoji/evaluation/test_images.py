"""Image tasks, with models that know everything, nothing, or one thing wrongly."""

import dataclasses

import numpy as np
import pytest

from tuna_jax.emoji.evaluation import images as tasks
from tuna_jax.emoji.evaluation import suite
from tuna_jax.emoji.world.captions import captions, questions
from tuna_jax.emoji.world.rendering import render
from tuna_jax.emoji.world.scenes import SceneSource, Thing

COUNT = 48


ALL = [
    scene
    for split in ("test_single", "test_pairs", "test_counts")
    for scene in tasks.test_scenes(split, 80)
]
SCENES = {text: scene for scene in ALL for text in captions(scene)}


def perfect(prompts, seed):
    other = SceneSource("train")[0]
    return np.stack([render(SCENES.get(text, other)) for text in prompts])


def exchanged(prompts, seed):
    """Both objects, in each other's place."""
    images = []
    for text in prompts:
        scene = SCENES[text]
        first, second = scene.things
        swapped = (
            Thing(second.name, first.left, first.top, first.size),
            Thing(first.name, second.left, second.top, second.size),
        )
        images.append(render(dataclasses.replace(scene, things=swapped)))
    return np.stack(images)


def one_of_two(prompts, seed):
    images = [render(dataclasses.replace(SCENES[t], things=SCENES[t].things[:1])) for t in prompts]
    return np.stack(images)


def other_scenes(prompts, seed):
    source = SceneSource("test_single", 12345)
    return np.stack([render(source[i]) for i in range(len(prompts))])


def test_a_perfect_model_scores_one(judge):
    for split, score in (
        ("test_single", tasks.single_scores),
        ("test_pairs", tasks.pair_scores),
        ("test_counts", tasks.count_scores),
    ):
        scores, right = score(tasks.generate_split(perfect, split, COUNT), judge)
        assert right.mean() > 0.97
        for name, value in scores.items():
            assert value.value > 0.97, name
            assert value.count == COUNT
            assert value.chance < value.value


def test_exchanged_objects_are_present_in_wrong_positions(judge):
    scores, right = tasks.pair_scores(tasks.generate_split(exchanged, "test_pairs", COUNT), judge)
    assert scores["two_object_accuracy"].value > 0.97
    assert scores["position_accuracy"].value == 0
    assert not right.any()


def test_one_of_two_objects_is_not_enough(judge):
    scores, _ = tasks.pair_scores(tasks.generate_split(one_of_two, "test_pairs", COUNT), judge)
    assert scores["two_object_accuracy"].value < 0.1
    assert scores["position_accuracy"].value < 0.1


def test_a_model_that_ignores_the_prompt_is_near_chance(judge):
    scores, _ = tasks.single_scores(tasks.generate_split(other_scenes, "test_single", COUNT), judge)
    assert scores["single_object_accuracy"].value < 0.1
    assert scores["ground_colour_accuracy"].value < 0.4


def test_missing_one_of_a_kind_is_wrong(judge):
    def generate(prompts, seed):
        scenes = [SCENES[text] for text in prompts]
        return np.stack([render(dataclasses.replace(s, things=s.things[:-1])) for s in scenes])

    scores, _ = tasks.count_scores(tasks.generate_split(generate, "test_counts", COUNT), judge)
    assert scores["counted_objects_accuracy"].value < 0.1


def test_images_of_another_shape_are_an_error():
    with pytest.raises(ValueError, match=r"uint8 \[4, 64, 64, 3\]"):
        tasks.generate_split(
            lambda prompts, seed: np.zeros((4, 32, 32, 3), np.uint8), "test_single", 4
        )


def oracle(images, prompts):
    """Finds the scene of an image and answers exactly."""
    pictures = {hash(render(scene).tobytes()): scene for scene in ALL}
    texts = []
    for image, question in zip(images, prompts, strict=True):
        scene = pictures[hash(image.tobytes())]
        texts.append(next(item.answer for item in questions(scene) if item.question == question))
    return texts


@pytest.mark.parametrize("task", tasks.ANSWER_TASKS)
def test_exact_answers_score_one_and_others_zero(task):
    score, answered = tasks.ask(oracle, task, 20)
    assert score.value == 1
    assert score.count == len(answered) == 20
    assert 0 < score.chance <= 0.75
    kinds = {item.kind for item in answered}
    assert kinds == {tasks.ANSWER_TASKS[task][0]}
    wrong, _ = tasks.ask(lambda images, prompts: ["a zebra"] * len(prompts), task, 20)
    assert wrong.value == 0


def test_naming_has_one_question():
    _, answered = tasks.ask(oracle, "naming_accuracy", 10)
    assert {item.question for item in answered} == {"what is this?"}


def test_only_whitespace_around_an_answer_is_ignored():
    item = tasks.AnsweredQuestion(
        np.zeros((64, 64, 3), np.uint8), "name", "what is this?", "a dog", " a dog "
    )
    assert item.right
    assert not dataclasses.replace(item, answer="dog").right


def test_an_unknown_task_and_missing_answers_are_errors():
    with pytest.raises(KeyError, match="nameing.*naming_accuracy"):
        tasks.ask(oracle, "nameing", 4)
    with pytest.raises(ValueError, match="1 texts for 4 questions"):
        tasks.ask(lambda images, prompts: ["a dog"], "naming_accuracy", 4)


def test_reconstruction_psnr():
    def shifted(images):
        return np.where(images > 127, images - 10, images + 10).astype(np.uint8)

    psnr, rendered, reconstructed = tasks.reconstruction(shifted, 9)
    assert psnr == pytest.approx(20 * np.log10(255 / 10), abs=1e-6)
    assert len(rendered) == len(reconstructed) == 9


def test_measure_runs_image_tasks(judge):
    messages = []
    result = suite.measure(
        suite.TaskFunctions(generate=perfect, answer=oracle),
        reconstruct=lambda images: images,
        judge=judge,
        generations=8,
        questions=8,
        images_per_sheet=4,
        log=messages.append,
    )
    expected = {
        "single_object_accuracy",
        "two_object_accuracy",
        "naming_accuracy",
        "position_accuracy",
    }
    assert expected < set(result.scores)
    assert "ground_colour_accuracy" in result.scores
    assert result.vae_psnr_db > 60
    assert result.ceilings["single_object_accuracy"].value > 0.97
    assert len(result.sheets) == 5
    assert all(len(s.images) == len(s.labels) == len(s.right) for s in result.sheets)
    assert messages
