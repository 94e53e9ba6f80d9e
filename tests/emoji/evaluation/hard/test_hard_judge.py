"""The judge of the hard world: exact on true renderings, and strict on everything that is not what it claims to be."""

import dataclasses

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tuna_jax.emoji.evaluation.hard.judge import SeenObject, is_right, seen_in, verdicts
from tuna_jax.emoji.world.hard.captions import full_caption
from tuna_jax.emoji.world.hard.nouns import variants
from tuna_jax.emoji.world.hard.rendering import render_hard
from tuna_jax.emoji.world.hard.scenes import INVISIBLE, SIZES, Group, HardScene, HardSceneSource
from tuna_jax.emoji.world.scenes import GROUNDS


@pytest.fixture(scope="module")
def scenes():
    sources = [
        HardSceneSource(split)
        for split in ("train", "test_bindings", "test_three", "test_counts", "test_colours")
    ]
    return [sources[i % 5][i] for i in range(120)]


@pytest.fixture(scope="module")
def pictures(scenes):
    return np.stack([render_hard(scene) for scene in scenes])


def test_every_object_is_read_exactly_on_every_ground(hard_judge):
    """Each name in each colour and both sizes, five to a picture: 3,440 objects."""
    entries = [(name, colour, size) for size in SIZES for name, colour in variants()]
    scenes = []
    for ground, rgb in GROUNDS.items():
        kept = [entry for entry in entries if (entry[0], ground) not in INVISIBLE]
        for start in range(0, len(kept), 5):
            groups = tuple(
                Group(*entry, (2 * i,)) for i, entry in enumerate(kept[start : start + 5])
            )
            scenes.append(HardScene("three", ground, rgb, groups, 96))
    seen = hard_judge(np.stack([render_hard(scene) for scene in scenes]))
    assert [s for s, true in zip(seen, scenes, strict=True) if s != seen_in(true)] == []


def test_true_renderings_are_right_with_noise_and_at_other_sizes(hard_judge, scenes, pictures):
    assert hard_judge(pictures) == [seen_in(scene) for scene in scenes]
    noise = np.random.default_rng(0).normal(0, 8, pictures.shape)
    noisy = np.clip(pictures + noise, 0, 255).astype(np.uint8)
    right = [a == seen_in(scene) for a, scene in zip(hard_judge(noisy), scenes, strict=True)]
    assert np.mean(right) > 0.97
    large = [dataclasses.replace(scene, size=128) for scene in scenes[:40]]
    seen = hard_judge(np.stack([render_hard(scene) for scene in large]))
    assert seen == [seen_in(scene) for scene in large]


def test_renderings_through_the_vae_are_right(hard_judge, through_hard_vae, scenes, pictures):
    seen = hard_judge(through_hard_vae(pictures[:64]))
    found = [
        seen_object in picture.objects
        for scene, picture in zip(scenes[:64], seen, strict=True)
        for seen_object in seen_in(scene).objects
    ]
    assert np.mean(found) > 0.96, np.mean(found)
    assert all(s.ground == scene.ground for s, scene in zip(seen, scenes[:64], strict=True))


def test_pictures_of_other_captions_are_wrong(hard_judge, scenes, pictures):
    seen = hard_judge(pictures)
    for shift in (1, 2, 5):
        moved = seen[shift:] + seen[:shift]
        right = [is_right(full_caption(s).claims, m) for s, m in zip(scenes, moved, strict=True)]
        assert not any(right)


def _replace(scene, index, **changes):
    groups = list(scene.groups)
    groups[index] = dataclasses.replace(groups[index], **changes)
    return dataclasses.replace(scene, groups=tuple(groups))


@pytest.mark.parametrize(
    ("change", "aspect"),
    [
        ("colours", "colour"),
        ("sizes", "size"),
        ("places", "place"),
        ("one moved", "place"),
        ("one missing", "objects"),
        ("one more", "objects"),
        ("another ground", "ground"),
        ("another name", "objects"),
    ],
)
def test_a_near_miss_is_wrong_in_exactly_one_aspect(hard_judge, change, aspect):
    source = HardSceneSource("test_bindings", seed=11)
    scenes = [source[i] for i in range(40)]
    scenes = [s for s in scenes if s.groups[0].size != s.groups[1].size][:12]
    changed = []
    for scene in scenes:
        one, other = scene.groups
        free = next(c for c in range(9) if c not in one.cells + other.cells)
        if change == "colours":
            near = _replace(_replace(scene, 0, colour=other.colour), 1, colour=one.colour)
        elif change == "sizes":
            near = _replace(_replace(scene, 0, size=other.size), 1, size=one.size)
        elif change == "places":
            near = _replace(_replace(scene, 0, cells=other.cells), 1, cells=one.cells)
        elif change == "one moved":
            near = _replace(scene, 1, cells=(free,))
        elif change == "one missing":
            near = dataclasses.replace(scene, groups=scene.groups[:1])
        elif change == "one more":
            near = _replace(scene, 1, cells=(*other.cells, free))
        elif change == "another ground":
            ground = next(g for g in GROUNDS if g != scene.ground)
            near = dataclasses.replace(scene, ground=ground, rgb=GROUNDS[ground])
        else:
            used = (one.name, other.name)
            name = next(n for n in ("key", "car", "bell") if n not in used)
            near = _replace(scene, 0, name=name)
        changed.append(near)
    seen = hard_judge(np.stack([render_hard(scene) for scene in changed]))
    for scene, picture in zip(scenes, seen, strict=True):
        claims = full_caption(scene).claims
        assert not is_right(claims, picture)
        found = verdicts(claims, picture)
        assert found[aspect] is False
        if change in ("colours", "sizes", "places", "another ground"):
            assert [name for name, value in found.items() if value is False] == [aspect]


def test_what_is_no_object_is_not_known(hard_judge):
    """Blobs of the right colours, halves, and objects out of their cell."""
    source = HardSceneSource("test_single", seed=3)
    scenes = [source[i] for i in range(60)]
    pictures = np.stack([render_hard(scene) for scene in scenes])
    claims = [full_caption(scene).claims for scene in scenes]

    def share(images):
        return np.mean([is_right(c, s) for c, s in zip(claims, hard_judge(images), strict=True)])

    assert share(pictures) == 1
    blurred = gaussian_filter(pictures.astype(float), (0, 5, 5, 0)).astype(np.uint8)
    assert share(blurred) < 0.1
    assert share(np.roll(pictures, 10, axis=2)) == 0
    half = pictures.copy()
    for picture, scene in zip(half, scenes, strict=True):
        column = scene.groups[0].cells[0] % 3 * 32
        picture[:, column + 16 : column + 32] = scene.rgb
    assert share(half) < 0.1


def test_no_pictures_and_plain_grounds(hard_judge):
    assert hard_judge(np.zeros((0, 96, 96, 3), np.uint8)) == []
    plain = np.full((1, 96, 96, 3), GROUNDS["teal"], np.uint8)
    (seen,) = hard_judge(plain)
    assert seen.ground == "teal" and seen.objects == ()


@pytest.mark.parametrize("name", ["", "snail"], ids=["unknown", "known"])
def test_an_object_that_the_caption_does_not_name_is_wrong(scenes, name):
    for scene in scenes[:20]:
        claims, seen = full_caption(scene).claims, seen_in(scene)
        assert is_right(claims, seen)
        free = next(c for c in range(9) if all(item.cell != c for item in seen.objects))
        further = SeenObject(name, "", "small" if name else "", free)
        more = seen._replace(objects=(*seen.objects, further))
        assert verdicts(claims, more)["objects"] is False
        assert not is_right(claims, more)
