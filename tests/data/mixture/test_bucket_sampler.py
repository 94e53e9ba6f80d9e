"""The order of a bucket's examples: shuffled epochs, the same in every process."""

import pickle

import numpy as np

from tuna_jax.data.media.image import Size
from tuna_jax.data.mixture.bucket_sampler import BucketSampler, seed_words
from tuna_jax.data.mixture.bucketing import Bucket
from tuna_jax.sequence import Grid

MEMBERS = np.array([3, 5, 8, 13, 21, 34, 55], np.int64)


def sampler(key=(7, 1), members=MEMBERS):
    return BucketSampler(0, Bucket(Size(32, 32), 1, 64), Grid(1, 2, 2), members, key)


def epoch(samples, number):
    count = len(samples.members)
    return [samples.member(number * count + i) for i in range(count)]


def test_an_epoch_has_every_member_once():
    samples = sampler()
    for number in (0, 1, 5):
        assert sorted(epoch(samples, number)) == list(range(len(MEMBERS)))


def test_epochs_and_keys_have_different_orders():
    orders = [epoch(sampler(), 0), epoch(sampler(), 1), epoch(sampler((7, 2)), 0)]
    assert len({tuple(order) for order in orders}) == 3


def test_any_position_may_be_read_in_any_order():
    forwards = [sampler().member(i) for i in range(30)]
    backwards = sampler()
    assert [backwards.member(i) for i in reversed(range(30))] == forwards[::-1]


def test_a_pickled_sampler_continues_with_the_same_order():
    samples = sampler()
    copy = pickle.loads(pickle.dumps(samples))
    assert [copy.member(i) for i in range(20)] == [samples.member(i) for i in range(20)]
    assert (copy.stream, copy.bucket, copy.grid) == (samples.stream, samples.bucket, samples.grid)


def test_one_member_repeats():
    assert [sampler(members=MEMBERS[:1]).member(i) for i in range(3)] == [0, 0, 0]


def test_the_order_is_the_one_that_runs_resume_with():
    """Fixed numbers: another order would change the data of a run that resumes."""
    assert epoch(sampler(), 0) == [3, 0, 2, 1, 4, 6, 5]
    assert seed_words("captions") == (3991843804, 462498575)
