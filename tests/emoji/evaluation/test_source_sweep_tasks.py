"""Sweep tasks in which pictures are given, with a model that knows the truth and one that returns what it is given."""

import numpy as np
import pytest

from tuna_jax.emoji.evaluation import combine, continuations
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.sweeps.registry import make_task

COUNT = 8
KINDS = {"combine": {"right", "unnamed"}, "continue_clips": {"clip", "first_frame", "motion"}}


class PerfectModel(Tuna):
    """Knows the items by their seeds, and records those."""

    def __init__(self):
        object.__setattr__(self, "size", (64, 64))
        object.__setattr__(self, "seeds", [])

    def edit_image(self, sources, instructions, *, seed, batch_size):
        self.seeds.append(seed)
        items = combine.test_items([item for _, item in seed])
        np.testing.assert_array_equal(np.stack(sources), items.sources)
        assert tuple(instructions) == items.instructions and batch_size == len(seed)
        return items.targets

    def generate_video(self, prompts, *, image, frames, seed, batch_size):
        self.seeds.append(seed)
        items = continuations.test_items([item for _, item in seed], frames)
        np.testing.assert_array_equal(np.stack(image), items.firsts)
        assert tuple(prompts) == items.generated.prompts and batch_size == len(seed)
        return items.true


class IdleModel(PerfectModel):
    """Returns its first picture."""

    def edit_image(self, sources, instructions, **options):
        return np.stack([pair[0] for pair in sources])

    def generate_video(self, prompts, *, image, frames, **options):
        return np.repeat(np.stack(image)[:, None], frames, axis=1)


@pytest.mark.parametrize("kind", KINDS)
def test_true_results_are_right_and_unchanged_ones_wrong(kind):
    task = make_task("any", {"kind": kind, "count": COUNT})
    model = PerfectModel()
    outcome = task.run(model, range(COUNT), 7)
    outcome.check(COUNT)
    assert {task.verdict, *task.chance} <= KINDS[kind] <= set(outcome.values)
    assert {np.nanmean(outcome.values[name]) for name in KINDS[kind]} == {1.0}
    assert model.seeds == [[(7, item) for item in range(COUNT)]]
    idle = task.run(IdleModel(), range(COUNT), 7)
    assert np.nanmean(idle.values[task.verdict]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_does_not_depend_on_the_others(kind):
    task = make_task("any", {"kind": kind, "count": COUNT})
    whole, part = (task.run(PerfectModel(), items, 7) for items in (range(COUNT), [5, 2]))
    assert list(part.prompts) == [whole.prompts[5], whole.prompts[2]]
    np.testing.assert_array_equal(part.pictures, whole.pictures[[5, 2]])
