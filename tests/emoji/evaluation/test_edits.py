"""The judge of edits: true targets, copies, wrong and shuffled results, and the ceiling of the VAE."""

import dataclasses

import numpy as np
import pytest

from tuna_jax.emoji.evaluation import edits
from tuna_jax.emoji.world.edits import EDITS

COUNT = 48


@pytest.fixture(scope="module")
def edited():
    """Edits whose results are the true targets."""
    copies = edits.edit_split(lambda images, instructions, seed: images, COUNT)
    return dataclasses.replace(copies, results=copies.targets)


def with_results(edited, images):
    return dataclasses.replace(edited, results=images)


def test_true_targets_are_right_and_untouched(edited, judge):
    right = edits.verdicts(edited, judge)
    assert right.all()
    scores = edits.edit_scores(edited, right)
    assert set(scores) == {"edit_accuracy", *(f"edit_{kind}_accuracy" for kind in EDITS)}
    assert (
        scores["edit_accuracy"].count
        == COUNT
        == sum(scores[f"edit_{kind}_accuracy"].count for kind in EDITS)
    )
    assert scores["edit_remove_accuracy"].chance == 0.5
    assert min(edits.untouched_db(edited).values()) > 100


def test_an_unchanged_source_is_wrong(edited, judge):
    """Also for removal, where all remaining objects are right."""
    assert not edits.verdicts(with_results(edited, edited.sources), judge).any()


def test_shuffled_results_are_wrong(edited, judge):
    order = np.roll(np.arange(COUNT), 7)
    assert edits.verdicts(with_results(edited, edited.targets[order]), judge).mean() < 0.05


def test_an_additional_object_is_wrong(edited, judge):
    """A true target with a blot where the ground should be."""
    rows = [i for i, edit in enumerate(edited.edits) if edit.target.place == "top left"]
    blotted = edited.targets.copy()
    blotted[rows, 40:56, 40:56] = 0
    right = edits.verdicts(with_results(edited, blotted), judge)
    assert rows and not right[rows].any() and right.sum() == COUNT - len(rows)


def test_psnr_covers_only_untouched_pixels(edited):
    """Noise on pixels that an edit changes has no effect; an offset on the others has."""
    changed = (edited.sources != edited.targets).any(-1)
    random = np.random.default_rng(0)
    noisy = edited.targets.copy()
    noisy[changed] = random.integers(0, 256, (int(changed.sum()), 3))
    assert min(edits.untouched_db(with_results(edited, noisy)).values()) > 100
    shifted = np.clip(edited.targets.astype(int) + np.where(changed, 0, 8)[..., None], 0, 255)
    psnr = edits.untouched_db(with_results(edited, shifted.astype(np.uint8)))
    assert all(abs(value - 20 * np.log10(255 / 8)) < 1.5 for value in psnr.values())


def test_the_ceiling_through_the_vae_is_near_full(edited, judge, through_vae):
    reconstructed = with_results(edited, through_vae(edited.targets))
    assert edits.verdicts(reconstructed, judge).mean() > 0.95
    psnr = edits.untouched_db(reconstructed)
    assert psnr["recolour"] > 23 and min(psnr[kind] for kind in EDITS if kind != "recolour") > 28


def test_a_result_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match="edit returned uint8"):
        edits.edit_split(lambda images, instructions, seed: images[:1], 3)
