"""Bounds from round numbers."""

import pytest

from tuna_jax.hardware.chips import CHIPS
from tuna_jax.planning.roofline import Work, bound


def test_the_slowest_resource_binds():
    chip = CHIPS["v5e"]
    work = Work(flops=197e12, model_flops=98.5e12, memory=2 * 819e9, network=200e9)
    found = bound(work, chip)
    assert (found.compute, found.memory, found.network, found.dcn) == pytest.approx((1, 2, 1, 0))
    assert (found.step, found.binds, found.unhidden) == (2.0, "memory", 4.0)
    assert found.mfu == pytest.approx(0.25)


def test_recomputation_lowers_the_bound_on_mfu():
    """All else free, the bound is the share of FLOPs that are not computed again."""
    work = Work(flops=4e15, model_flops=3e15, memory=0.0, network=0.0)
    assert bound(work, CHIPS["v5p"]).mfu == pytest.approx(0.75)


def test_a_device_has_its_share_of_a_chip():
    work = Work(flops=2307e12, model_flops=2307e12, memory=0.0, network=0.0, dcn=25e9)
    found = bound(work, CHIPS["tpu7x"])
    assert found.compute == pytest.approx(2.0)
    assert found.mfu == pytest.approx(1 / 4)
    assert found.dcn == pytest.approx(8.0)  # an eighth of a host's card
    assert found.binds == "dcn"
