"""Which splits a world of few nouns and colours has."""

import itertools

import pytest

from tuna_jax.emoji.world.hard.held_out import (
    SPLITS,
    Difficulty,
    available_splits,
    has_scenes,
    is_held_out_pair,
)
from tuna_jax.emoji.world.hard.scenes import HardSceneSource, held_out_kinds

SMALL = Difficulty(nouns=4, colours=3)


def test_the_whole_world_and_the_experiments_have_every_split():
    everything = tuple(split for split in SPLITS if split != "train")
    assert available_splits() == available_splits(Difficulty(12, 4)) == everything
    assert available_splits(layouts=("single", "count")) == (
        "test_single",
        "test_colours",
        "test_counts",
    )


@pytest.mark.parametrize("difficulty", [SMALL, Difficulty(5, 2), Difficulty(6, 2)])
def test_a_small_world_has_the_splits_that_it_can_fill(difficulty):
    for split in SPLITS:
        if has_scenes(split, difficulty):
            scene = HardSceneSource(split, difficulty=difficulty)[3]  # Endless if it has none.
            assert bool(held_out_kinds(scene)) == (split != "train")
        else:
            assert split in ("test_pairs", "test_bindings", "test_three")
            with pytest.raises(ValueError, match=rf"{split}.*nouns={difficulty.nouns}"):
                HardSceneSource(split, difficulty=difficulty)
    names = (*difficulty.coloured, *difficulty.uncoloured)
    held_out = [pair for pair in itertools.combinations(names, 2) if is_held_out_pair(*pair)]
    assert ("test_pairs" in available_splits(difficulty)) == bool(held_out)
    assert has_scenes("test_bindings", difficulty) == any(
        set(pair) <= set(difficulty.coloured) for pair in held_out
    )
