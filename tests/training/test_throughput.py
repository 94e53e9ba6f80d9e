"""Rates of a run, by a clock that the test moves."""

import types

import pytest

from tuna_jax.training import throughput
from tuna_jax.training.throughput import NAMES, Throughput, peak_of


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])
    return now


def test_rates_are_of_the_steps_alone_and_goodput_is_of_everything(clock) -> None:
    counted = Throughput(peak=1e12, begun=90.0)  # ten seconds of restoring and compiling
    for _ in range(4):
        clock[0] += 2.0
        counted.step(tokens=300, flops=10**12)
    with counted.aside():
        clock[0] += 2.0  # a save
    assert counted.read() == {
        "goodput": pytest.approx(8 / 20),
        "step_seconds": pytest.approx(2.0),
        "tokens_per_second": pytest.approx(150.0),
        "mfu": pytest.approx(0.5),
    }
    clock[0] += 5.0
    counted.step(tokens=300, flops=10**12)
    told = counted.read()
    assert told["tokens_per_second"] == pytest.approx(60.0)
    assert told["goodput"] == pytest.approx(13 / 25)
    assert set(told) == set(NAMES)


def test_without_a_peak_there_is_no_mfu_and_without_steps_no_rate(clock) -> None:
    counted = Throughput(peak=None, begun=100.0)
    clock[0] += 1.0
    assert counted.read() == {"goodput": 1.0}
    counted.step(tokens=10, flops=0)
    clock[0] += 1.0
    assert set(counted.read()) == {"goodput", "step_seconds", "tokens_per_second"}


def test_an_error_in_what_is_aside_still_counts_there(clock) -> None:
    counted = Throughput(peak=None, begun=100.0)
    with pytest.raises(OSError, match="full"), counted.aside():
        clock[0] += 3.0
        raise OSError("disk full")
    clock[0] += 1.0
    assert counted.read()["goodput"] == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 2307e12 / 2),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("cpu", None),
        ("TPU v50", None),
    ],
)
def test_peaks_are_of_one_device(kind: str, peak: float | None) -> None:
    assert peak_of(types.SimpleNamespace(device_kind=kind)) == peak
