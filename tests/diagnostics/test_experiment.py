"""The step next to the plan's bound, and data that do not keep up."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import pytest

from tuna_jax.diagnostics import experiment
from tuna_jax.diagnostics.finding import PASS, SLOW
from tuna_jax.hardware.chips import CHIPS
from tuna_jax.planning import compiler

NAMES = ["process 0 (a)", "process 1 (b)"]


@pytest.fixture(scope="module")
def measured():
    compiled = jax.jit(lambda x: x @ x).lower(jnp.ones((256, 256))).compile()
    return experiment.Step(
        seconds=1.0,
        rows=8,
        tokens=8 * 1000,
        memory=None,
        compiled=compiler.described(compiled),
        flops=(2 * 197 * 10**12, 197 * 10**12),  # Two seconds of a v5e for two devices.
        devices=2,
        slices=1,
        stream="draw",
    )


def test_the_prediction_is_the_plans_bound(measured):
    bound = experiment.predicted(measured, CHIPS["v5e"])
    assert bound.compute == pytest.approx(1.0) and bound.binds == "compute"
    assert bound.mfu == pytest.approx(0.5)
    finding = experiment.step_finding(measured, CHIPS["v5e"], "TPU v5 lite")
    assert finding.result == PASS and "predicted 1 s if all overlaps" in finding.measured
    assert "MFU 50%, at most 50%" in finding.measured and "15.75 GiB" in finding.measured


def test_a_step_of_more_than_twice_the_prediction_is_slow(measured):
    slow = dataclasses.replace(measured, seconds=2.5)
    assert experiment.step_finding(slow, CHIPS["v5e"], "TPU v5 lite").result == SLOW


def test_without_figures_of_the_chip_there_is_no_prediction(measured):
    finding = experiment.step_finding(dataclasses.replace(measured, seconds=99.0), None, "cpu")
    assert finding.result == PASS and "no prediction exists for cpu" in finding.measured


def test_a_slow_pipeline_is_slow_and_the_slowest_host_is_named():
    def batches(seconds):
        while True:
            time.sleep(seconds)
            yield {}

    slow = experiment.measure_data(batches(0.02), rows=4)
    assert 0.02 <= slow.seconds < 0.5
    fast = dataclasses.replace(slow, seconds=1e-4)
    assert experiment.data_finding([fast, fast], NAMES, 0.01).result == PASS
    finding = experiment.data_finding([fast, slow], NAMES, 0.01)
    assert finding.result == SLOW and "process 1 (b)" in finding.measured
    assert "workers" in finding.mend
