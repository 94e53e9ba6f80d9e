"""Sweep tasks of the hard world, with a model that renders the scene of its caption and one that renders another's."""

import dataclasses
import math

import numpy as np
import pytest

from tuna_jax.emoji.evaluation.hard import distribution, items, scores, sweep_tasks
from tuna_jax.emoji.evaluation.hard.judge import HardJudge, seen_in
from tuna_jax.emoji.evaluation.hard.sweep_tasks import TASKS
from tuna_jax.emoji.world.hard.captions import hard_questions
from tuna_jax.emoji.world.hard.rendering import render_hard
from tuna_jax.emoji.world.hard.scenes import Difficulty, HardSceneSource
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.sweeps import registry

COUNT = 14
SMALL = {"nouns": 4, "colours": 3}
WORLD = Difficulty(**SMALL)


class Oracle(Tuna):
    """Renders the scene of each caption (of other captions, the next of a list), answers exactly, records its calls."""

    def __init__(self, *parts, shift=0):
        scenes = {t: s for part in parts for t, s in zip(part.texts, part.scenes, strict=True)}
        source = HardSceneSource("test_single", 3, difficulty=WORLD)
        others = [source[i] for i in range(12)]
        attributes = {"size": (96, 96), "calls": [], "scenes": scenes, "others": others}
        for name, value in {**attributes, "shift": shift}.items():
            object.__setattr__(self, name, value)

    def generate_image(self, prompts, *, seed, batch_size):
        self.calls.append((list(seed), batch_size))
        scenes = [
            self.scenes.get(text, self.others[index % len(self.others)])
            for text, (_, index) in zip(prompts, seed, strict=True)
        ]
        return np.roll(np.stack([render_hard(scene) for scene in scenes]), self.shift, axis=0)

    def reply(self, conversations, *, max_new_tokens, batch_size):
        assert max_new_tokens > 32
        self.calls.append((None, batch_size))
        prompts = [item.messages[-1]["content"].removeprefix("<image>\n") for item in conversations]
        media = [item.media[0][0].tobytes() for item in conversations]
        return [f" {self.scenes[pair]}" for pair in zip(media, prompts, strict=True)]


@pytest.fixture(autouse=True, scope="module")
def cheap():
    """A judge that knows the pictures of a few scenes, and a smaller reference of the distance."""

    class Judge(HardJudge):
        known = {}

        def __init__(self):
            pass

        def __call__(self, images):
            return [self.known[image.tobytes()] for image in images]

    for split in items.chosen_splits((), WORLD):
        for seed, number in ((items.SEED, 20), (3, 12)):
            source = HardSceneSource(split, seed, difficulty=WORLD)
            scenes = [source[i] for i in range(number)]
            Judge.known.update({render_hard(scene).tobytes(): seen_in(scene) for scene in scenes})
    distribution.feature_space.cache_clear()
    distribution.plain_distance.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_tasks, "_judge", Judge)
        patch.setattr(distribution, "_REFERENCE", 60)
        yield
    distribution.feature_space.cache_clear()
    distribution.plain_distance.cache_clear()


def prompts(caption, **options):
    return items.prompts(caption, COUNT, difficulty=WORLD, **options)


@pytest.mark.parametrize("caption", ["full", "partial"])
def test_true_pictures_are_right_and_those_of_other_captions_wrong(caption):
    task = TASKS["hard_generate"](caption=caption, count=COUNT, **SMALL)
    part = prompts(caption)
    outcome = task.run(Oracle(part), range(COUNT), 7)
    outcome.check(COUNT)
    assert outcome.prompts == part.texts and outcome.pictures.shape == (COUNT, 96, 96, 3)
    applies = {name: ~np.isnan(values) for name, values in outcome.values.items()}
    assert all(np.all(np.array(outcome.values[name])[rows] == 1) for name, rows in applies.items())
    assert ("binding" in applies) == (caption == "full")
    assert applies["right"].all() and applies["object"].all()
    claimed = [claims.ground is not None for claims in part.claims]
    assert applies["ground"].tolist() == claimed and all(claimed) == (caption == "full")
    assert applies["count"].tolist() == [split == "test_counts" for split in part.splits]
    assert not applies["relation"].any() and applies["place"].any()
    wrong = task.run(Oracle(part, shift=1), range(COUNT), 7).values
    assert np.mean(wrong["right"]) < 0.2 and np.nanmean(wrong["ground"]) < 0.8


def test_relations_and_bindings_are_judged_where_the_world_has_them():
    task = TASKS["hard_generate"](caption="relation", count=6)
    part = items.prompts("relation", 6)
    judged = dataclasses.replace(part, seen=tuple(map(seen_in, part.scenes)))
    values = scores.metric_values(judged)
    assert values["relation"] == [1.0] * 6 and "relation" in task.chance
    part = items.prompts("full", COUNT)
    judged = part.with_images(np.stack([render_hard(s) for s in part.scenes]), Blind())
    binding = scores.metric_values(judged)["binding"]
    assert [not math.isnan(v) for v in binding] == [s == "test_bindings" for s in part.splits]
    assert set(binding) >= {0.0}


class Blind(HardJudge):
    """Sees the first scene of a split in every picture."""

    def __init__(self):
        pass

    def __call__(self, images):
        return [seen_in(HardSceneSource("test_single")[0])] * len(images)


def test_chance_is_that_of_the_scores():
    task = TASKS["hard_generate"](count=COUNT, **SMALL)
    part = prompts("full").with_images(np.zeros((COUNT, 96, 96, 3), np.uint8), Blind())
    found = scores.generation_scores([part])
    for metric, name in (("right", "full"), ("ground", "ground"), ("count", "count")):
        assert task.chance[metric] == found[f"hard_{name}_accuracy"].chance
    assert 0 < task.chance["ground"] < 1 and "relation" not in task.chance


def test_an_item_and_its_noise_depend_only_on_the_seed_and_the_item():
    part = prompts("full")
    few, many = (TASKS["hard_generate"](count=n, **SMALL) for n in (8, COUNT))
    model = Oracle(part)
    whole, some = many.run(model, range(COUNT), 7), few.run(model, [7, 2], 7)
    assert list(some.prompts) == [whole.prompts[7], whole.prompts[2]]
    np.testing.assert_array_equal(some.pictures, whole.pictures[[7, 2]])
    assert model.calls[1] == ([(7, 7), (7, 2)], 2)
    for name, options in (("hard_diversity", {}), ("hard_distance", {"pictures": 16})):
        task = TASKS[name](count=3, **options, **SMALL)
        model = Oracle()
        whole, some = task.run(model, range(3), 9), task.run(model, [2, 1], 9)
        for metric, values in whole.values.items():
            np.testing.assert_allclose(some.values[metric], np.array(values)[[2, 1]], rtol=1e-6)
        np.testing.assert_array_equal(some.pictures, whole.pictures[[2, 1]])
        assert whole.pictures.shape == (3, 384, 384, 3)
        calls, rows = model.calls[1]
        assert calls == [(9, i) for i in (*range(32, 48), *range(16, 32))] and rows == 32


def test_items_are_of_the_splits_that_are_named():
    part = prompts("full", splits=("test_counts",))
    task = TASKS["hard_generate"](count=COUNT, splits=("test_counts",), **SMALL)
    outcome = task.run(Oracle(part), [0, 5], 7)
    assert set(part.splits) == {"test_counts"} and task.options["splits"] == ["test_counts"]
    assert outcome.values["count"] == [1.0, 1.0] == outcome.values["right"]
    task = TASKS["hard_answer"](question="ground", count=2, splits=("test_counts",), **SMALL)
    asked = items.questions_of_kind("ground", 2, difficulty=WORLD, splits=("test_counts",))
    assert all(scene.layout == "count" for scene, _ in asked)
    model = Oracle()
    model.scenes.update({(render_hard(s).tobytes(), q.question): q.answer for s, q in asked})
    assert task.run(model, [0, 1], 7).values == {"exact": [1.0, 1.0]}


def test_answers_are_exact_or_wrong():
    task = TASKS["hard_answer"](question="describe", count=6, **SMALL)
    asked = items.questions_of_kind("describe", 6, difficulty=WORLD)
    model = Oracle()
    for scene, _ in asked:
        for item in hard_questions(scene):
            model.scenes[render_hard(scene).tobytes(), item.question] = item.answer
    outcome = task.run(model, [0, 4, 5], 7)
    assert outcome.values == {"exact": [1.0] * 3} and outcome.expected[1] == asked[4][1].answer
    assert task.chance == {"exact": pytest.approx(1 / 6)}
    first = next(iter(model.scenes))
    model.scenes[first] = model.scenes[first] + "?"
    kinds = [item.question for item in hard_questions(asked[0][0])]
    assert first[1] == kinds[0]
    ground = TASKS["hard_answer"](question="ground", count=2, **SMALL)
    assert ground.run(model, [0, 1], 7).values == {"exact": [0.0, 1.0]}


def test_diversity_and_distance_tell_models_apart():
    diversity = TASKS["hard_diversity"](count=2, **SMALL)
    varied = diversity.run(Oracle(), range(2), 7).values
    same = Oracle()
    object.__setattr__(same, "others", same.others[:1])
    constant = diversity.run(same, range(2), 7).values
    assert constant["diversity"] == [0.0] * 2 == [diversity.chance["diversity"]] * 2
    assert constant["commonest_share"] == [1.0] * 2 and constant["counted"] == [1.0] * 2
    assert min(varied["diversity"]) > 0.5 and max(varied["commonest_share"]) < 0.8
    distance = TASKS["hard_distance"](count=1, pictures=48, **SMALL)
    part = items.prompts("partial", 48, difficulty=WORLD)
    true, poor = (distance.run(m, [0], 7).values["distance"][0] for m in (Oracle(part), same))
    assert true < poor < distance.chance["distance"] * 10 and true < 0.5 * poor


@pytest.mark.parametrize(
    ("kind", "options", "key"),
    [
        ("hard_generate", {"caption": "short"}, "partial"),
        ("hard_generate", {"splits": ("train",)}, r"splits.*'train'"),
        ("hard_generate", {"splits": ("test_pairs",), **SMALL}, r"test_pairs.*nouns=4"),
        ("hard_generate", {"caption": "relation", **SMALL}, r"splits.*'relation'.*test_pairs"),
        ("hard_generate", {"nouns": 3}, "nouns"),
        ("hard_answer", {"question": "shape"}, r"question.*'shape'"),
        ("hard_answer", {"question": "which", **SMALL}, r"splits.*'which'"),
        ("hard_diversity", {"count": 9, **SMALL}, "count is 9"),
        ("hard_distance", {"pictures": 1}, "pictures"),
        ("hard_distance", {"count": 0, **SMALL}, "count is 0"),
    ],
)
def test_wrong_options_are_named(kind, options, key):
    with pytest.raises(ValueError, match=key):
        registry.make_task("any", {"kind": kind, **options})
