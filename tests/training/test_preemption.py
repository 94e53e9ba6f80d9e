"""Requests to stop: SIGTERM and Ctrl-C."""

import os
import signal
import threading
import time

import pytest

from tuna_jax.training.preemption import StopRequest


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
