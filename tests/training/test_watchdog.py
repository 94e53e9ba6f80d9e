"""A run that stands still is reported once with its stacks, and ends after the limit."""

import dataclasses
import threading
import time

import pytest

from tuna_jax.training.watchdog import Watchdog, WatchdogSettings

SETTINGS = WatchdogSettings(factor=3.0, least=0.3, end=1.5)


class Messages(list):
    """The messages, with an event that is set by the end."""

    def __init__(self):
        super().__init__()
        self.ended = threading.Event()

    def end(self, text):
        self.append(text)
        self.ended.set()


@pytest.fixture
def messages():
    return Messages()


def a_step_that_never_ends(messages):
    assert messages.ended.wait(timeout=60)


def test_a_stall_is_reported_with_its_stacks_and_ends(tmp_path, messages):
    watchdog = Watchdog(SETTINGS, tmp_path, 3, messages.append, messages.end)
    with watchdog:
        watchdog.step(7)
        a_step_that_never_ends(messages)
    assert len(messages) == 2
    stacks = tmp_path / "stacks" / "3.txt"
    assert "process 3" in messages[0] and "step 7" in messages[0] and str(stacks) in messages[0]
    assert "config.watchdog.end" in messages[1]
    text = stacks.read_text()
    assert text.count("=== no step") == 1 and "a_step_that_never_ends" in text


def test_slow_work_that_is_no_step_is_not_watched(tmp_path, messages):
    watchdog = Watchdog(SETTINGS, tmp_path, 0, messages.append, messages.end)
    with watchdog:
        watchdog.step(1)
        with watchdog.paused():
            time.sleep(1.6)
        watchdog.step(2)
    assert messages == []


def test_no_limit_without_an_end(tmp_path, messages):
    settings = dataclasses.replace(SETTINGS, end=0.0)
    watchdog = Watchdog(settings, tmp_path, 0, messages.append, messages.end)
    with watchdog:
        watchdog.step(1)
        time.sleep(2.2)
    assert len(messages) == 1 and not messages.ended.is_set()


def test_slow_steps_are_not_late(tmp_path, messages):
    watchdog = Watchdog(SETTINGS, tmp_path, 0, messages.append, messages.end)
    for number in range(1, 4):
        watchdog.step(number)
        time.sleep(0.2)
    assert watchdog.limit() >= 3 * 0.2


@pytest.mark.parametrize("wrong", [{"factor": 0.0}, {"least": -1.0}, {"end": -1.0}])
def test_wrong_settings_are_named(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"config\.watchdog\.{name}"):
        WatchdogSettings(**wrong)
