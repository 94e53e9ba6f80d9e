"""Tasks of the hard world for sweeps: held-out scenes, judged picture by picture, caption by caption or set by set.

Item i is the i-th item of `suite.measure_hard` with the same world and splits; its noise is derived from the sweep's
seed and i. `nouns` and `colours` are those of the run's `config.data`, and `splits` the test splits to take scenes of:
() takes all that a world of these nouns and colours has (`held_out.available_splits`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from tuna_jax.emoji.evaluation.hard import distribution, items, scores
from tuna_jax.emoji.evaluation.hard.judge import HardJudge
from tuna_jax.emoji.evaluation.report import ATTRIBUTION
from tuna_jax.emoji.world.hard.captions import KINDS
from tuna_jax.emoji.world.hard.nouns import COLOURS
from tuna_jax.emoji.world.hard.rendering import render_hard
from tuna_jax.emoji.world.hard.scenes import Difficulty
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.sweeps.task import GENERATION_SETTINGS, UNDERSTANDING_SETTINGS, Outcome, Task, seeds
from tuna_jax.utils.image_grid import tiled

PICTURES_PER_CAPTION = 16
"""Pictures of one item of `hard_diversity`."""
_LEAST_ROWS = 32
_judge = functools.cache(HardJudge)


def hard_generate(
    caption: str = "full",
    count: int = 64,
    nouns: int = 0,
    colours: int = len(COLOURS),
    splits: Sequence[str] = (),
) -> Task:
    """Pictures of captions: everything right, and the accuracies of `scores.METRICS`, NaN where a caption does not
    claim them.

    Args:
      caption: one of `items.PROMPTS`: 'full', 'partial' or 'relation'.
      count: number of captions, one picture each.
      nouns, colours: of the world, see `Difficulty`.
      splits: test splits; () for all.

    Raises:
      ValueError: an unknown caption or split, splits without such captions, or too few nouns or colours.
    """
    world, options = _world(nouns, colours, splits)
    of_size = functools.cache(lambda size: items.prompts(caption, count, size=size, **world))

    def run(model: Tuna, chosen: Sequence[int], seed: int) -> Outcome:
        prompted = of_size(model.size[0]).take(chosen)
        pictures = model.generate_image(
            prompted.texts, seed=seeds(seed, chosen), batch_size=len(chosen)
        )
        judged = prompted.with_images(pictures, _judge())
        return Outcome(scores.metric_values(judged), prompted.texts, pictures=judged.images)

    return Task(
        "hard_generate",
        1,
        count,
        {"caption": caption, **options},
        GENERATION_SETTINGS,
        run,
        scores.metric_chances(of_size(96)),
        "right",
        ATTRIBUTION,
    )


def hard_answer(
    question: str = "name",
    count: int = 64,
    nouns: int = 0,
    colours: int = len(COLOURS),
    splits: Sequence[str] = (),
) -> Task:
    """One kind of question about held-out scenes; only exact answers are right.

    Args:
      question: one of `captions.KINDS`: name, colour, size, where, count, relation, which, ground or describe.
      count: number of questions.
      nouns, colours, splits: as in `hard_generate`.

    Raises:
      ValueError: an unknown kind or split, splits without such questions, or too few nouns or colours.
    """
    if question not in KINDS:
        raise ValueError(
            f"question is {question!r}, which is no kind of question; the kinds are {', '.join(KINDS)}"
        )
    world, options = _world(nouns, colours, splits)
    of_size = functools.cache(
        lambda size: items.questions_of_kind(question, count, size=size, **world)
    )
    matching = of_size(96)
    if len(matching) < count:
        raise ValueError(
            f"count is {count}, and only {len(matching)} questions of the kind {question!r} were found; lower count"
        )

    def run(model: Tuna, chosen: Sequence[int], seed: int) -> Outcome:
        del seed  # Answers are greedy.
        rows = [of_size(model.size[0])[i] for i in chosen]
        pictures = np.stack([render_hard(scene) for scene, _ in rows])
        prompts, expected = [q.question for _, q in rows], [q.answer for _, q in rows]
        texts = model.reply(
            [Conversation.of([p[None]], q) for p, q in zip(pictures, prompts, strict=True)],
            max_new_tokens=items.MAX_NEW_TOKENS,
            batch_size=len(chosen),
        )
        exact = [float(a.strip() == b) for a, b in zip(texts, expected, strict=True)]
        return Outcome({"exact": exact}, prompts, expected, texts, pictures)

    return Task(
        "hard_answer",
        1,
        count,
        {"question": question, **options},
        UNDERSTANDING_SETTINGS,
        run,
        {"exact": scores.answer_chance(question, [q.answer for _, q in matching])},
        "exact",
        ATTRIBUTION,
    )


def hard_diversity(count: int = 8, nouns: int = 0, colours: int = len(COLOURS)) -> Task:
    """16 pictures of each caption that names one object and nothing else, such as "a heart".

    `diversity` is the entropy of ground, place, size and colour relative to uniform, `commonest_share` the share of
    their commonest value, and `counted` the share of pictures with exactly one known object, which are those that
    count. Chance is the same picture every time.

    Args:
      count: number of captions, at most one for each noun of the world.
      nouns, colours: as in `hard_generate`.

    Raises:
      ValueError: the world has fewer captions, or too few nouns or colours.
    """
    world, options = _world(nouns, colours, ())
    names = len(world["difficulty"].coloured) + len(world["difficulty"].uncoloured)
    # Beyond the number of names, no search for more captions.
    captions = distribution.bare_prompts(min(count, names), difficulty=world["difficulty"])
    if len(captions) < count:
        raise ValueError(
            f"count is {count}, and with nouns={nouns} the world has only {len(captions)} captions of one name; "
            f"lower count, or raise nouns"
        )

    def run(model: Tuna, chosen: Sequence[int], seed: int) -> Outcome:
        prompts = [captions[i].text for i in chosen]
        pictures = _generate_sets(
            model, [[text] * PICTURES_PER_CAPTION for text in prompts], chosen, seed
        )
        found = [
            distribution.diversity_of(captions[i], _judge()(images), world["difficulty"])
            for i, images in zip(chosen, pictures, strict=True)
        ]
        values = {
            "diversity": [float(np.mean(list(item.entropies.values()))) for item in found],
            "commonest_share": [float(np.mean(list(item.commonest.values()))) for item in found],
            "counted": [item.counted for item in found],
        }
        return Outcome(values, prompts, pictures=np.stack([tiled(images) for images in pictures]))

    del options["splits"]
    return Task(
        "hard_diversity",
        1,
        count,
        options,
        GENERATION_SETTINGS,
        run,
        {"diversity": 0.0, "commonest_share": 1.0},
        attribution=ATTRIBUTION,
    )


def hard_distance(
    count: int = 4,
    pictures: int = 64,
    nouns: int = 0,
    colours: int = len(COLOURS),
    splits: Sequence[str] = (),
) -> Task:
    """Sets of pictures of partial captions: the Frechet distance of each set from the world's own pictures.

    A small set has a larger distance than a large one from the same distribution, so only sets of one size can be
    compared. Chance is the distance of plain grounds (at 96 pixels).

    Args:
      count: number of sets.
      pictures: pictures of one set.
      nouns, colours, splits: as in `hard_generate`.

    Raises:
      ValueError: fewer than two pictures, an unknown split, or too few nouns or colours.
    """
    if pictures < 2:
        raise ValueError(f"pictures is {pictures}; a distance requires at least 2 pictures")
    world, options = _world(nouns, colours, splits)
    texts = items.prompts("partial", count * pictures, **world).texts
    sets = [texts[i * pictures : (i + 1) * pictures] for i in range(count)]
    space = (world["difficulty"], world["splits"])

    def run(model: Tuna, chosen: Sequence[int], seed: int) -> Outcome:
        generated = _generate_sets(model, [sets[i] for i in chosen], chosen, seed)
        values = {"distance": [distribution.distance_of(images, *space) for images in generated]}
        prompts = [f"{pictures} captions: {'; '.join(sets[i][:4])}; ..." for i in chosen]
        return Outcome(values, prompts, pictures=np.stack([tiled(images) for images in generated]))

    return Task(
        "hard_distance",
        1,
        count,
        {"pictures": pictures, **options},
        GENERATION_SETTINGS,
        run,
        {"distance": distribution.plain_distance(96, *space)},
        attribution=ATTRIBUTION,
    )


def _world(
    nouns: int, colours: int, splits: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What items are made with, and the same as the options of a task."""
    difficulty = Difficulty(nouns, colours)
    difficulty.check()
    chosen = items.chosen_splits(splits, difficulty)
    options = {"nouns": nouns, "colours": colours, "splits": list(chosen)}
    return {"difficulty": difficulty, "splits": chosen}, options


def _generate_sets(
    model: Tuna, prompts: Sequence[Sequence[str]], chosen: Sequence[int], seed: int
) -> list[UInt8[np.ndarray, "n size size 3"]]:
    """The pictures of each set of prompts; the noise of picture j of item i depends only on (seed, i, j).

    Batches have a multiple of `len(chosen)` rows, which the sweep's mesh divides.
    """
    each = len(prompts[0])
    pictures = model.generate_image(
        [text for texts in prompts for text in texts],
        seed=seeds(seed, [item * each + j for item in chosen for j in range(each)]),
        batch_size=len(chosen) * -(-_LEAST_ROWS // len(chosen)),
    )
    return np.split(np.asarray(pictures), len(chosen))


TASKS = {
    function.__name__: function
    for function in (hard_generate, hard_answer, hard_diversity, hard_distance)
}
"""Name -> function of options that returns a task."""
