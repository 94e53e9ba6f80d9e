"""Throughput of a run, measured with a clock that the test advances."""

import types

import pytest

from tuna_jax.training.throughput import NAMES, Throughput, peak_of


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_rates_cover_only_steps_and_goodput_the_whole_run(clock) -> None:
    counted = Throughput(
        peak=1e12, begun=90.0, clock=clock
    )  # ten seconds of restoring and compiling
    for _ in range(4):
        clock.now += 2.0
        counted.step(tokens=300, flops=10**12)
    with counted.excluded():
        clock.now += 2.0  # a save
    assert counted.read() == {
        "goodput": pytest.approx(8 / 20),
        "step_seconds": pytest.approx(2.0),
        "tokens_per_second": pytest.approx(150.0),
        "mfu": pytest.approx(0.5),
    }
    clock.now += 5.0
    counted.step(tokens=300, flops=10**12)
    values = counted.read()
    assert values["tokens_per_second"] == pytest.approx(60.0)
    assert values["goodput"] == pytest.approx(13 / 25)
    assert set(values) == set(NAMES)


def test_mfu_requires_a_peak_and_rates_require_steps(clock) -> None:
    counted = Throughput(peak=None, begun=100.0, clock=clock)
    clock.now += 1.0
    assert counted.read() == {"goodput": 1.0}
    counted.step(tokens=10, flops=0)
    clock.now += 1.0
    assert set(counted.read()) == {"goodput", "step_seconds", "tokens_per_second"}


def test_excluded_time_counts_after_an_error(clock) -> None:
    counted = Throughput(peak=None, begun=100.0, clock=clock)
    with pytest.raises(OSError, match="full"), counted.excluded():
        clock.now += 3.0
        raise OSError("disk full")
    clock.now += 1.0
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


def test_waiting_for_data_is_measured_and_is_not_good(clock) -> None:
    counted = Throughput(peak=None, begun=100.0, clock=clock)
    for _ in range(2):
        with counted.waiting():
            clock.now += 3.0
        clock.now += 1.0
        counted.step(tokens=10, flops=0)
    assert counted.take_waited() == 6.0
    assert counted.take_waited() == 0.0
    assert counted.read(waited=6.0)["goodput"] == pytest.approx(2 / 8)
    clock.now += 2.0
    counted.step(tokens=10, flops=0)
    assert counted.read()["goodput"] == pytest.approx(4 / 10)  # Of the whole run.
