"""The judge of continued clips: true ones, still and shuffled ones, other first frames, and the ceiling of the VAE."""

import numpy as np
import pytest

from tuna_jax.emoji.evaluation import clips, continuations
from tuna_jax.emoji.world.clips import MOTIONS, beginnings
from tuna_jax.evaluation.metrics.psnr_ssim import psnr

COUNT, FRAMES = 64, 4


@pytest.fixture(scope="module")
def continued():
    """Clips of the test split, as they are."""
    return continuations.test_items(range(COUNT), FRAMES)


def shares(continued, frames, judge):
    made = continuations.with_frames(continued, frames)
    right = continuations.verdicts(made, judge)
    return {k: s.value for k, s in continuations.continuation_scores(made, right).items()}


def test_true_clips_are_right(continued, judge):
    right = continuations.verdicts(continued, judge)
    scores = continuations.continuation_scores(continued, right)
    assert {score.value for score in scores.values()} == {1.0}
    turning = [
        clip.motion in ("shrink", "turn left", "turn right") for clip in continued.generated.clips
    ]
    assert scores["i2v_choice_accuracy"].count == sum(turning) > 8
    assert scores["i2v_choice_accuracy"].chance == pytest.approx(1 / 3)
    assert 0.5 < scores["i2v_accuracy"].chance < 0.9 and scores["i2v_object_accuracy"].chance == 0


def test_motions_that_begin_alike():
    assert beginnings("turn left") == ("shrink", "turn left", "turn right")
    assert all(beginnings(m) == (m,) for m in MOTIONS if m not in beginnings("shrink"))


def test_still_and_shuffled_clips_are_wrong(continued, judge):
    still = np.repeat(continued.true[:, :1], FRAMES, axis=1)
    values = shares(continued, still, judge)
    assert values["i2v_motion_accuracy"] == values["i2v_accuracy"] == 0
    assert values["i2v_first_frame_accuracy"] == 1
    values = shares(continued, np.roll(continued.true, 5, axis=0), judge)
    assert values["i2v_accuracy"] == 0 and values["i2v_first_frame_accuracy"] < 0.05


def test_another_object_on_the_same_ground_is_another_first_frame(continued):
    """The threshold lies between what the VAE loses and what tells two objects apart."""
    items, frames = continued.generated.clips, continued.firsts
    apart = [
        psnr(frames[i : i + 1], frames[j : j + 1])[0]
        for i, first in enumerate(items)
        for j, second in enumerate(items)
        if i < j and first.ground == second.ground and first.name != second.name
    ]
    assert len(apart) > 50 and np.quantile(apart, 0.97) < continuations.FIRST_FRAME_DB


def test_the_ceiling_through_the_vae_is_near_full(continued, judge, through_vae):
    flat = through_vae(continued.true.reshape(-1, 64, 64, 3))
    after = flat.reshape(continued.true.shape)
    assert psnr(after[:, 0], continued.firsts).min() > continuations.FIRST_FRAME_DB + 2
    assert min(shares(continued, after, judge).values()) > 0.93


def test_a_split_gives_first_frames_and_texts(continued):
    def make(firsts, texts, frames, seed):
        np.testing.assert_array_equal(firsts, continued.firsts[:6])
        assert all(text.startswith(("it ", "the ")) for text in texts)
        return np.repeat(firsts[:, None], frames, axis=1)

    made = continuations.continue_split(make, 6, FRAMES)
    assert set(clips.judge_motion(made.generated.frames)) == {clips.STILL}
    with pytest.raises(ValueError, match="continued clips are uint8"):
        continuations.continue_split(lambda *arguments: continued.true[:1], 3, FRAMES)
