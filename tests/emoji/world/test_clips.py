"""Clips: held-out combinations, motion, texts, and images for the VAE."""

import dataclasses

import numpy as np
import pytest

from tuna_jax.emoji.world.clips import (
    CLIP_KINDS,
    MOTIONS,
    Clip,
    ClipImages,
    ClipSource,
    box,
    clip_captions,
    clip_questions,
    is_held_out,
    render_clip,
)
from tuna_jax.emoji.world.rendering import SceneImages
from tuna_jax.emoji.world.scenes import GROUNDS, NAMES, is_held_out_single


def clip(motion, name="dog", frames=4):
    return Clip(name, motion, "blue", GROUNDS["blue"], frames, 64)


def centre(picture):
    off = np.abs(picture.astype(int) - np.array(GROUNDS["blue"])).max(-1) > 30
    rows, columns = np.nonzero(off)
    return columns.mean(), rows.mean(), off.sum()


def test_only_test_clips_are_held_out():
    train, test = ClipSource(), ClipSource("test")
    for i in range(400):
        trained, tested = train[i], test[i]
        assert not is_held_out(trained.name, trained.ground, trained.motion)
        assert is_held_out(tested.name, tested.ground, tested.motion)
        if trained.motion in ("grow", "shrink", "turn left", "turn right"):
            assert not is_held_out_single(trained.name, trained.ground, "middle")
    triples = [(n, g, m) for n in NAMES for g in GROUNDS for m in MOTIONS]
    assert abs(np.mean([is_held_out(*triple) for triple in triples]) - 0.15) < 0.02
    assert train[5] == ClipSource(length=9)[5] != ClipSource(seed=3)[5]
    motions = [train[i].motion for i in range(400)]
    assert min(motions.count(motion) for motion in MOTIONS) > 25


@pytest.mark.parametrize(
    ("motion", "axis", "sign"), [("right", 0, 1), ("left", 0, -1), ("down", 1, 1), ("up", 1, -1)]
)
@pytest.mark.parametrize("frames", [3, 4, 5])
def test_a_move_crosses_the_image_on_the_grid_of_cells(motion, axis, sign, frames):
    pictures = render_clip(clip(motion, frames=frames))
    assert pictures.shape == (frames, 64, 64, 3) and pictures.dtype == np.uint8
    centres = [centre(picture) for picture in pictures]
    assert abs(sign * (centres[-1][axis] - centres[0][axis]) - 32) < 0.1
    assert abs(centres[-1][1 - axis] - centres[0][1 - axis]) < 0.1
    assert all(
        sign * (b[axis] - a[axis]) >= -0.1 for a, b in zip(centres, centres[1:], strict=False)
    )
    assert {box(clip(motion, frames=frames), i)[axis] % 16 for i in range(frames)} == {0}


def test_growing_and_shrinking_change_only_the_area():
    grown = [centre(picture) for picture in render_clip(clip("grow"))]
    shrunk = [centre(picture) for picture in render_clip(clip("shrink"))]
    assert grown == shrunk[::-1]
    assert 2.5 < grown[-1][2] / grown[0][2] < 3.3
    assert abs(grown[-1][0] - grown[0][0]) < 1.5 and abs(grown[-1][1] - grown[0][1]) < 1.5


def test_a_left_turn_is_counterclockwise():
    left, right = render_clip(clip("turn left")), render_clip(clip("turn right"))
    np.testing.assert_array_equal(left[0], right[0])
    np.testing.assert_allclose(left[-1].astype(int), np.rot90(left[0]).astype(int), atol=2)
    np.testing.assert_allclose(right[-1].astype(int), np.rot90(left[0], -1).astype(int), atol=2)
    np.testing.assert_array_equal(left[1], left[0])
    np.testing.assert_array_equal(left[2], left[3])


def test_captions_and_answers_describe_the_motion():
    assert clip_captions(clip("right"))[0] == "a dog moves to the right on a blue background"
    assert clip_captions(clip("grow", "owl"))[1] == "on a blue background, an owl grows"
    answers = {(q.question, q.answer) for q in clip_questions(clip("turn left"))}
    assert ("what does the dog do?", "it turns to the left") in answers
    assert ("which way does it turn?", "to the left") in answers
    assert ("which way does it move?", "up") in {q[:2] for q in clip_questions(clip("up"))}
    assert not any(q.kind == "direction" for q in clip_questions(clip("shrink")))
    for motion in MOTIONS:
        items = clip_questions(clip(motion))
        assert {q.kind for q in items} <= set(CLIP_KINDS)
        others = [dataclasses.replace(clip(m)) for m in MOTIONS if m != motion]
        assert all(
            set(clip_captions(other)).isdisjoint(clip_captions(clip(motion))) for other in others
        )


def test_invalid_settings_are_errors():
    with pytest.raises(ValueError, match="frames is 1"):
        ClipSource(frames=1)
    with pytest.raises(ValueError, match="split.*'validation'"):
        ClipSource("validation")


def test_images_for_a_vae_are_scenes_and_frames_of_clips():
    scenes = SceneImages(2, varied=0.0)
    mixed = ClipImages(scenes, 0.4, seed=2)
    same = [bool(np.array_equal(mixed[i], scenes[i])) for i in range(200)]
    assert 0.5 < np.mean(same) < 0.7
    frame = mixed[same.index(False)]
    assert frame.dtype == np.float32 and frame.shape == (64, 64, 3) and abs(frame).max() <= 1
    np.testing.assert_array_equal(
        frame, ClipImages(SceneImages(2, varied=0.0), 0.4, seed=2)[same.index(False)]
    )
    assert all(np.array_equal(ClipImages(scenes, 0.0)[i], scenes[i]) for i in range(9))
    with pytest.raises(ValueError, match="clips is 1.5"):
        ClipImages(scenes, 1.5)


def test_motions_have_their_frequencies():
    source = ClipSource(weights={"turn left": 3.0, "up": 1.0})
    motions = [source[i].motion for i in range(400)]
    assert set(motions) == {"turn left", "up"} and 60 < motions.count("up") < 140
    with pytest.raises(ValueError, match="motions.*jump"):
        ClipSource(weights={"jump": 1.0})
