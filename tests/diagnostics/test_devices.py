"""Devices that are missing, unlike the others, wrong or slow are named."""

import jax
import pytest

from tuna_jax.diagnostics import devices
from tuna_jax.diagnostics.finding import FAIL, PASS, SLOW
from tuna_jax.hardware.chips import CHIPS, GIB, chip_of_device

NAMES = ["process 0 (a)", "process 1 (b)"]
V5E = {
    "platform": "tpu",
    "kinds": ["TPU v5 lite"],
    "count": 4,
    "all": 8,
    "memory": int(15.75 * GIB),
    "coordinates": [[x, y, 0] for x in range(2) for y in range(2)],
    "slices": [0],
}


def test_the_devices_of_this_machine_pass():
    facts = devices.facts()
    assert devices.facts_finding([facts], NAMES[:1]).result == PASS
    results = devices.products(jax.local_devices())
    assert devices.products_finding(results, None).result == PASS and results[0]["rate"] > 0


def test_topology_and_memory_are_read_and_kinds_are_known():
    other = V5E | {"coordinates": [[x, y, 0] for x in (2, 3) for y in range(2)]}
    finding = devices.facts_finding([V5E, other], NAMES)
    assert finding.result == PASS
    assert "8 x TPU v5 lite, 4 on each of 2 processes, topology 4x2x1" in finding.measured
    assert "15.75 GiB" in finding.measured
    assert (
        chip_of_device("TPU v5 lite") == CHIPS["v5e"] and chip_of_device("TPU v5") == CHIPS["v5p"]
    )
    assert chip_of_device("NVIDIA H200") is None


@pytest.mark.parametrize(
    ("change", "result", "says"),
    [
        ({"count": 3}, FAIL, "process 1 (b): count 3 (process 0: 4)"),
        ({"kinds": ["TPU v5p"]}, FAIL, "process 1 (b): kinds"),
        ({"memory": 8 * GIB}, SLOW, "process 1 (b): 8.0 GiB of 15.8 GiB"),
    ],
)
def test_a_host_with_other_devices_is_named(change, result, says):
    finding = devices.facts_finding([V5E, V5E | change], NAMES)
    assert finding.result == result and says in finding.measured and finding.mend


def test_an_accelerator_that_jax_does_not_use_fails():
    assert devices.backend_finding("cpu", []).result == PASS
    assert devices.backend_finding("tpu", ["a TPU"]).result == PASS
    finding = devices.backend_finding("cpu", ["a TPU"])
    assert finding.result == FAIL and "jax[tpu]" in finding.mend


def test_a_device_that_computes_otherwise_or_slowly_is_named():
    good = [{"device": n, "rate": 150e12, "checksum": 5} for n in range(4)]
    assert devices.products_finding(good, 197e12).result == PASS
    wrong = [*good[:3], good[3] | {"checksum": 6}]
    finding = devices.products_finding(wrong, 197e12)
    assert finding.result == FAIL and "device 3" in finding.measured
    hot = [*good[:2], good[2] | {"rate": 120e12}, good[3]]
    finding = devices.products_finding(hot, 197e12)
    assert finding.result == SLOW and "device 2" in finding.measured
    all_slow = [result | {"rate": 50e12} for result in good]
    assert devices.products_finding(all_slow, 197e12).result == SLOW
    assert devices.products_finding(all_slow, None).result == PASS
