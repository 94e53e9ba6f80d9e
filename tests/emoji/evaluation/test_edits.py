"""The judge of edits: what is right, what a copy, a wrong picture or a shuffle scores, and the VAE's ceiling."""

import numpy as np
import pytest

from tuna_jax.emoji.evaluation import edits
from tuna_jax.emoji.world.edits import EDITS

COUNT = 48


@pytest.fixture(scope="module")
def made():
    """Edits whose results are the true targets."""
    found = edits.change(lambda pictures, texts, seed: pictures, COUNT)
    return edits.Edited(
        found.edits, found.instructions, found.sources, found.targets, found.targets
    )


def results(made, pictures):
    return edits.Edited(made.edits, made.instructions, made.sources, made.targets, pictures)


def test_true_targets_are_right_and_untouched(made, judge):
    right = edits.verdicts(made, judge)
    assert right.all()
    scores = edits.edit_scores(made, right)
    assert set(scores) == {"edit_accuracy", *(f"edit_{kind}_accuracy" for kind in EDITS)}
    assert (
        scores["edit_accuracy"].count
        == COUNT
        == sum(scores[f"edit_{kind}_accuracy"].count for kind in EDITS)
    )
    assert scores["edit_remove_accuracy"].chance == 0.5
    assert min(edits.untouched_db(made).values()) > 100


def test_leaving_the_source_as_it_is_scores_nothing(made, judge):
    """Even for removal, where what stays is all there."""
    assert not edits.verdicts(results(made, made.sources), judge).any()


def test_shuffled_results_score_nothing_much(made, judge):
    order = np.roll(np.arange(COUNT), 7)
    assert edits.verdicts(results(made, made.targets[order]), judge).mean() < 0.05


def test_something_that_is_left_over_is_wrong(made, judge):
    """A true target with a blot of another object where ground should be."""
    rows = [i for i, edit in enumerate(made.edits) if edit.target.place == "top left"]
    blotted = made.targets.copy()
    blotted[rows, 40:56, 40:56] = 0
    right = edits.verdicts(results(made, blotted), judge)
    assert rows and not right[rows].any() and right.sum() == COUNT - len(rows)


def test_untouched_pixels_alone_are_measured(made):
    """What an edit changes may come out in any way; noise on the rest costs."""
    changed = (made.sources != made.targets).any(-1)
    random = np.random.default_rng(0)
    noisy = made.targets.copy()
    noisy[changed] = random.integers(0, 256, (int(changed.sum()), 3))
    assert min(edits.untouched_db(results(made, noisy)).values()) > 100
    shifted = np.clip(made.targets.astype(int) + np.where(changed, 0, 8)[..., None], 0, 255)
    found = edits.untouched_db(results(made, shifted.astype(np.uint8)))
    assert all(abs(value - 20 * np.log10(255 / 8)) < 1.5 for value in found.values())


def test_the_ceiling_through_the_vae_is_near_full(made, judge, through_vae):
    again = results(made, through_vae(made.targets))
    assert edits.verdicts(again, judge).mean() > 0.95
    found = edits.untouched_db(again)
    assert found["recolour"] > 23 and min(found[kind] for kind in EDITS if kind != "recolour") > 28


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="edit returned uint8"):
        edits.change(lambda pictures, texts, seed: pictures[:1], 3)
