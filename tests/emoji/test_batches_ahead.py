"""Background preparation of items, and requests to stop."""

import os
import signal
import threading
import time

import pytest

from tuna_jax.emoji.vae_trainer import prefetch
from tuna_jax.training.preemption import StopRequest


def test_items_come_in_order():
    def make(index):
        time.sleep(0.02 if index % 2 == 0 else 0)
        return index

    assert list(prefetch(make, 3, 9, depth=3, threads=3)) == [3, 4, 5, 6, 7, 8]


def test_only_a_few_are_prepared_ahead():
    prepared = []
    items = prefetch(lambda index: prepared.append(index) or index, 0, 100, depth=2)
    assert next(items) == 0
    time.sleep(0.1)
    assert max(prepared) <= 2
    items.close()


def test_depth_beyond_the_end_is_harmless():
    assert list(prefetch(lambda index: index, 0, 2, depth=10)) == [0, 1]
    assert list(prefetch(lambda index: index, 5, 5)) == []


def test_error_is_raised_where_its_item_was_due():
    def make(index):
        if index == 2:
            raise RuntimeError("no picture 2")
        return index

    items = prefetch(make, 0, 5)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(RuntimeError, match="no picture 2"):
        next(items)


def test_sigterm_becomes_a_request_and_the_handler_is_restored():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert stop.requested
    assert signal.getsignal(signal.SIGTERM) is before


def test_second_interrupt_ends_at_once():
    # A process that a shell runs in the background ignores SIGINT; install the handler of the foreground.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            assert stop.requested
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGINT, before)


def test_harmless_outside_the_main_thread():
    def body():
        with StopRequest() as stop:
            seen.append(stop.requested)

    seen = []
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False]
