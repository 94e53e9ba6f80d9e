"""Diversity of the pictures of one caption, and the distance of a set of pictures from the world's own.

*Diversity.* A caption of only a name ("a heart") leaves open the ground, the place, the size and the colour. The world
draws each of them uniformly, so a model of it gives every value equally often. Over several pictures of each such
caption, `hard_diversity` is the entropy of these values divided by that of the uniform distribution, and
`hard_commonest_share` the share of the commonest. Only pictures with exactly one known object count. Few samples have
less entropy than their distribution, so the report states the values of true renderings of as many scenes next to them.

*Distance.* `hard_frechet_distance` is the Frechet distance (Heusel et al., 2017) between normal distributions of
features that nothing has to be downloaded for, in three parts:

    layout     colours of the picture at 12 x 12: where something is, and on which ground
    objects    a fixed random layer of 64 rectified units on each cell, less that of plain ground, summed over the nine
               cells: what there is, wherever it is
    sharpness  three logarithms of the detail that is lost by blurring with 3, 5 and 9 pixels, relative to the contrast
               with the ground

The first two are reduced to 12 principal components of true renderings each, and everything is whitened by true
renderings. So each part counts alike: the ground, whose variance is by far the largest, does not hide the rest. The
distance of true renderings is near 0, and that of blurred pictures, other frequencies and missing modes grows with how
blurred, shifted or few they are (`tests/emoji/evaluation/hard/test_distribution.py`). What it cannot see is whether a
picture fits its caption; that is what accuracies are for.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats
from scipy.ndimage import uniform_filter

from tuna_jax.emoji.evaluation.hard.items import SEED, Images, chosen_splits
from tuna_jax.emoji.evaluation.hard.judge import (
    HardJudge,
    Seen,
    SeenObject,
    area_matrix,
    colour_features,
    own_ground,
)
from tuna_jax.emoji.evaluation.hard.scores import Generate
from tuna_jax.emoji.evaluation.judges import CROP
from tuna_jax.emoji.world.hard.captions import HardCaption, bare_caption
from tuna_jax.emoji.world.hard.nouns import COLOURS, hard_noun
from tuna_jax.emoji.world.hard.rendering import render_hard
from tuna_jax.emoji.world.hard.scenes import (
    EVERYTHING,
    GRID,
    SIZES,
    Difficulty,
    HardScene,
    HardSceneSource,
    box_of_cell,
    side_of_cell,
)
from tuna_jax.emoji.world.scenes import GROUNDS
from tuna_jax.evaluation.metrics.accuracy import Score, bootstrap
from tuna_jax.evaluation.metrics.fid_cmmd import frechet_distance

DISTRIBUTION_SCORES = ("hard_diversity", "hard_commonest_share", "hard_frechet_distance")
"""Names of the scores of distributions; the last is a distance, the others are shares."""
# Aspect -> number of values, all equally frequent.
OPEN = {"ground": len(GROUNDS), "place": GRID**2, "size": len(SIZES), "colour": len(COLOURS)}
COMPONENTS = 12
_UNITS = 64
_REFERENCE = 900
_RESAMPLES = 40


def bare_prompts(
    count: int, *, seed: int = SEED, size: int = 96, difficulty: Difficulty = EVERYTHING
) -> list[HardCaption]:
    """Captions of only one object's name, all different; half of the nouns have an open colour."""
    source = HardSceneSource("test_single", seed, size, difficulty=difficulty)
    captions: dict[str, HardCaption] = {}
    for index in range(200 * count):
        caption = bare_caption(source[index])
        captions.setdefault(caption.text, caption)
        if len(captions) == count:
            break
    return list(captions.values())


def values_of(seen: Seen) -> dict[str, str] | None:
    """What a picture has for each of OPEN; None unless it has exactly one known object."""
    if len(seen.objects) != 1 or not seen.objects[0].name:
        return None
    item = seen.objects[0]
    return {
        "ground": seen.ground,
        "place": str(item.cell),
        "size": item.size,
        "colour": item.colour,
    }


class Diversity(NamedTuple):
    """How different the pictures of one caption are.

    Attributes:
        entropies: by open aspect, the entropy of its values relative to uniform.
        commonest: by open aspect, the share of its commonest value.
        counted: share of the pictures with exactly one known object; only they count.
    """

    entropies: dict[str, float]
    commonest: dict[str, float]
    counted: float


def diversity_of(
    caption: HardCaption, pictures: Sequence[Seen], difficulty: Difficulty = EVERYTHING
) -> Diversity:
    """The diversity of several pictures of a bare caption; fewer than two that count have entropy 0 and share 1."""
    found = [values_of(picture) for picture in pictures]
    kept = [values for values in found if values is not None]
    result = Diversity({}, {}, len(kept) / max(len(found), 1))
    for aspect, number in {**OPEN, "colour": difficulty.colours}.items():
        if aspect == "colour" and not hard_noun(caption.claims.mentions[0].name).coloured:
            continue
        shares = np.array(list(Counter(v[aspect] for v in kept).values()), float)
        shares /= max(shares.sum(), 1.0)
        few = len(kept) < 2
        entropy = 0.0 if few else float(-(shares * np.log(shares)).sum() / math.log(number))
        result.entropies[aspect] = entropy
        result.commonest[aspect] = 1.0 if few else float(shares.max())
    return result


def diversity_scores(
    captions: Sequence[HardCaption],
    seen: Sequence[Sequence[Seen]],
    difficulty: Difficulty = EVERYTHING,
) -> dict[str, Score]:
    """`hard_diversity` and `hard_commonest_share` of several pictures of each caption.

    The value is the mean over captions and over their open aspects, the interval is the bootstrap's over captions, and
    `by` has the mean of each aspect and the share of pictures that count. `chance` is that of a model that gives the
    same picture every time. A caption without two pictures that count has entropy 0 and share 1.
    """
    by_caption = [
        diversity_of(caption, pictures, difficulty)
        for caption, pictures in zip(captions, seen, strict=True)
    ]
    result = {}
    for name, parts, same in (
        ("hard_diversity", [item.entropies for item in by_caption], 0.0),
        ("hard_commonest_share", [item.commonest for item in by_caption], 1.0),
    ):
        array = np.array([np.mean(list(part.values())) for part in parts])
        by = {}
        for aspect in OPEN:
            values = [part[aspect] for part in parts if aspect in part]
            if values:
                by[aspect] = float(np.mean(values))
        by["pictures with one known object"] = float(np.mean([item.counted for item in by_caption]))
        result[name] = Score(float(array.mean()), same, len(array), bootstrap(array), by)
    return result


def sampled_diversity(
    generate: Generate,
    judge: HardJudge,
    *,
    captions: int = 16,
    each: int = 16,
    seed: int = SEED,
    size: int = 96,
    difficulty: Difficulty = EVERYTHING,
) -> tuple[dict[str, Score], Images, list[HardCaption]]:
    """The scores of `each` pictures of `captions` bare captions; the pictures, and the caption of each."""
    chosen = bare_prompts(captions, seed=seed, size=size, difficulty=difficulty)
    rows = [caption for caption in chosen for _ in range(each)]
    seeds = [seed * 1_000_003 + 900_000 + i for i in range(len(rows))]
    images = np.asarray(generate([caption.text for caption in rows], seeds))
    seen = judge(images)
    grouped = [seen[i : i + each] for i in range(0, len(seen), each)]
    return diversity_scores(chosen, grouped, difficulty), images, rows


def true_diversity(
    *,
    captions: int = 16,
    each: int = 16,
    seed: int = SEED,
    difficulty: Difficulty = EVERYTHING,
) -> dict[str, Score]:
    """The scores that the world's own pictures have with as many samples, without rendering them."""
    random = np.random.default_rng(seed)
    chosen, seen = bare_prompts(captions, seed=seed, difficulty=difficulty), []
    for caption in chosen:
        name = caption.claims.mentions[0].name
        colours = tuple(COLOURS)[: difficulty.colours] if hard_noun(name).coloured else ("",)
        pictures = []
        for _ in range(each):
            item = _seen_object(random, name, colours)
            pictures.append(Seen(tuple(GROUNDS)[int(random.integers(len(GROUNDS)))], (item,)))
        seen.append(pictures)
    return diversity_scores(chosen, seen, difficulty)


def _seen_object(random: np.random.Generator, name: str, colours: Sequence[str]) -> SeenObject:
    colour = colours[int(random.integers(len(colours)))]
    size = SIZES[int(random.integers(len(SIZES)))]
    return SeenObject(name, colour, size, int(random.integers(GRID**2)))


@dataclasses.dataclass(frozen=True)
class FeatureSpace:
    """Whitened features of the world's own pictures.

    Attributes:
        parts: mean, principal directions and scale of each part of `raw_features`.
        reference: the features of the world's own pictures.
    """

    parts: tuple[tuple[np.ndarray, np.ndarray], ...]
    reference: Float[np.ndarray, "n k"]

    def __call__(self, images: Images) -> Float[np.ndarray, "m k"]:
        """The features of pictures."""
        raw = raw_features(images)
        projected = [
            (part - mean) @ projection
            for part, (mean, projection) in zip(raw, self.parts, strict=True)
        ]
        return np.concatenate(projected, axis=1)


def raw_features(images: Images) -> list[Float[np.ndarray, "n d"]]:
    """Layout, objects and sharpness of each picture; float64."""
    layout = _resampled(images, 12).reshape(len(images), -1) / 255
    ground = np.array([own_ground(image) for image in images], np.float32)
    size = images.shape[1]
    objects = np.zeros((len(images), _UNITS))
    plain = _random_layer(np.broadcast_to(ground[:, None, None], (len(images), CROP, CROP, 3)))
    matrix = area_matrix(side_of_cell(size))
    for cell in range(GRID**2):
        left, top, side = box_of_cell(cell, size)
        crop = images[:, top : top + side, left : left + side].astype(np.float32)
        if side != CROP:
            crop = np.einsum("ij,njkc,lk->nilc", matrix, crop, matrix, optimize=True)
        objects += _random_layer(crop) - plain
    pixels = images.astype(np.float32).mean(-1)
    contrast = np.abs(pixels - ground.mean(-1)[:, None, None]).mean((1, 2)) + 1.0
    lost = [
        np.abs(pixels - uniform_filter(pixels, width, axes=(1, 2))).mean((1, 2))
        for width in (3, 5, 9)
    ]
    sharpness = np.log((np.stack(lost, 1) + 0.05) / contrast[:, None])
    return [part.astype(np.float64) for part in (layout, objects, sharpness)]


def _random_layer(crops: Float[np.ndarray, "n 32 32 3"]) -> Float[np.ndarray, "n units"]:
    """Rectified random sums of the colours of a cell."""
    features = colour_features(np.ascontiguousarray(crops, np.float32))
    random = np.random.default_rng(0)
    weights = random.standard_normal((features.shape[1], _UNITS)).astype(np.float32)
    return np.maximum((features - 0.5) @ weights / math.sqrt(features.shape[1]), 0.0)


def _resampled(images: Images, side: int) -> np.ndarray:
    matrix = area_matrix(images.shape[1], side)
    return np.einsum("ij,njkc,lk->nilc", matrix, images.astype(np.float32), matrix, optimize=True)


def world_scenes(
    count: int,
    *,
    first: int = 0,
    seed: int = SEED + 1,
    size: int = 96,
    difficulty: Difficulty = EVERYTHING,
    splits: Sequence[str] = (),
) -> list[HardScene]:
    """Scenes of the test splits (`items.chosen_splits`) in turn, as prompts have them, from index `first` on."""
    splits = chosen_splits(splits, difficulty)
    sources = [HardSceneSource(split, seed, size, difficulty=difficulty) for split in splits]
    return [sources[i % len(sources)][first + i // len(sources)] for i in range(count)]


@functools.lru_cache(maxsize=2)
def feature_space(
    size: int = 96, difficulty: Difficulty = EVERYTHING, splits: tuple[str, ...] = ()
) -> FeatureSpace:
    """The space of the world's own pictures of this size; computed once, in a few seconds."""
    scenes = world_scenes(_REFERENCE, size=size, difficulty=difficulty, splits=splits)
    pictures = np.stack([render_hard(scene) for scene in scenes])
    parts, reference = [], []
    for raw in raw_features(pictures):
        mean = raw.mean(0)
        values, vectors = np.linalg.eigh(np.cov(raw, rowvar=False))
        kept = np.argsort(values)[::-1][:COMPONENTS]
        projection = vectors[:, kept] / np.sqrt(values[kept])
        parts.append((mean, projection))
        reference.append((raw - mean) @ projection)
    return FeatureSpace(tuple(parts), np.concatenate(reference, axis=1))


def distance_of(
    images: Images, difficulty: Difficulty = EVERYTHING, splits: tuple[str, ...] = ()
) -> float:
    """The Frechet distance of a set of pictures from the world's own of these splits (`items.chosen_splits`)."""
    space = feature_space(images.shape[1], difficulty, splits)
    return frechet_distance(space(images), space.reference)


def frechet(
    images: Images, difficulty: Difficulty = EVERYTHING, splits: tuple[str, ...] = ()
) -> Score:
    """`hard_frechet_distance` of a set of pictures from the world's own.

    The value is a distance, 0 at best; `chance` is that of pictures of plain grounds. The 95 % interval is the
    percentile bootstrap's (SciPy) over pictures; resampling repeats pictures, which enlarges the distance, so the
    interval is moved by the difference of the bootstrap's mean from the value.
    """
    space = feature_space(images.shape[1], difficulty, splits)
    features = space(images)

    def distance(rows: np.ndarray) -> float:
        return frechet_distance(features[rows], space.reference)

    rows = np.arange(len(features))
    value = distance(rows)
    found = stats.bootstrap(
        (rows,),
        lambda sample: distance(np.asarray(sample, int)),
        vectorized=False,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    moved = value - float(np.mean(found.bootstrap_distribution))
    low, high = found.confidence_interval
    interval = (max(0.0, float(low) + moved), float(high) + moved)
    return Score(value, plain_distance(images.shape[1], difficulty, splits), len(images), interval)


@functools.lru_cache(maxsize=2)
def plain_distance(
    size: int = 96, difficulty: Difficulty = EVERYTHING, splits: tuple[str, ...] = ()
) -> float:
    """The distance of pictures of plain grounds: the chance level."""
    grounds = np.array(list(GROUNDS.values()), np.uint8)
    pictures = np.broadcast_to(grounds[:, None, None], (len(grounds), size, size, 3))
    return distance_of(np.ascontiguousarray(pictures), difficulty, splits)


def true_distance(
    count: int,
    size: int = 96,
    through: Callable[[Images], Images] | None = None,
    difficulty: Difficulty = EVERYTHING,
    splits: tuple[str, ...] = (),
) -> Score:
    """The distance of `count` further true renderings, or of those after `through`: the least that can be expected."""
    scenes = world_scenes(count, first=_REFERENCE, size=size, difficulty=difficulty, splits=splits)
    images = np.stack([render_hard(scene) for scene in scenes])
    return frechet(through(images) if through else images, difficulty, splits)
