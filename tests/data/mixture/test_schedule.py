"""The schedule: shares, positions, and weights that change."""

import collections

import numpy as np
import pytest

from tuna_jax.data.mixture.schedule import CYCLE, Schedule

WEIGHTS = [5.0, 2.0, 2.0, 0.5, 0.003, 0.0, 1.0]


def counted(schedule, count, samplers):
    """Samplers of batches 0 .. count - 1; checks that the positions of each sampler have no gap."""
    seen: collections.Counter[int] = collections.Counter()
    order = []
    for n in range(count):
        sampler, before = schedule(n)
        assert before == seen[sampler], f"batch {n} is not the next of sampler {sampler}"
        seen[sampler] += 1
        order.append(sampler)
    return [seen[sampler] for sampler in range(samplers)], order


def test_positions_have_no_gaps_and_shares_are_exact() -> None:
    count = 40 * CYCLE
    seen, order = counted(Schedule([(0, WEIGHTS)], 3), count, len(WEIGHTS))
    expected = np.array(WEIGHTS) / sum(WEIGHTS) * count
    np.testing.assert_allclose(seen, expected, atol=4)
    assert seen[4] > 0, "a rare sampler must not starve"
    assert seen[5] == 0
    for start in range(0, count, CYCLE):
        cycle = np.bincount(order[start : start + CYCLE], minlength=len(WEIGHTS))
        assert abs(cycle - expected / 40).max() < 1


def test_far_batches_are_computed_directly() -> None:
    schedule = Schedule([(0, WEIGHTS)], 3)
    far = 3_000_000 * CYCLE + 77
    samplers = [Schedule([(0, WEIGHTS)], 3)(far) for _ in range(2)] + [schedule(far)]
    assert len(set(samplers)) == 1
    seen = {}
    for n in range(far, far + 2 * CYCLE):
        sampler, before = schedule(n)
        assert before == seen.get(sampler, before)
        seen[sampler] = before + 1
    share = schedule(far)[1] / far
    assert abs(share - WEIGHTS[schedule(far)[0]] / sum(WEIGHTS)) < 1e-6


def test_cycles_and_seeds_differ() -> None:
    first, second = (
        [Schedule([(0, WEIGHTS)], 3)(n)[0] for n in range(at, at + CYCLE)] for at in (0, CYCLE)
    )
    assert first != second
    assert first != sorted(first), "samplers of a cycle are mixed"
    assert first != [Schedule([(0, WEIGHTS)], 4)(n)[0] for n in range(CYCLE)]


def test_weights_may_change_and_samplers_continue() -> None:
    before, after = [1.0, 3.0, 0.0], [1.0, 1.0, 2.0]
    schedule = Schedule([(0, before), (333, after), (700, before)], 5)
    old = Schedule([(0, before)], 5)
    seen, order = counted(schedule, 1400, 3)
    assert order[:333] == [old(n)[0] for n in range(333)]
    assert 2 not in order[:333] and 2 not in order[700:]
    np.testing.assert_allclose(np.bincount(order[333:700]) / 367, [0.25, 0.25, 0.5], atol=0.03)


def test_invalid_histories_are_named() -> None:
    for history in (
        [],
        [(5, [1.0])],
        [(0, [1.0]), (0, [1.0])],
        [(0, [1.0]), (9, [1.0]), (3, [1.0])],
    ):
        with pytest.raises(ValueError, match="begin at 0"):
            Schedule(history, 0)
    with pytest.raises(ValueError, match="negative"):
        Schedule([(0, [1.0, -1.0])], 0)
    with pytest.raises(ValueError, match="positive"):
        Schedule([(0, [0.0, 0.0])], 0)
