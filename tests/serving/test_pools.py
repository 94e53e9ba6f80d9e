"""Short and long answers have slots of their own, share the device's turns, and are each as by themselves."""

import concurrent.futures
import dataclasses

import httpx
import pytest

from tests.serving.conftest import SETTINGS, start
from tuna_jax.inference.conversation import Conversation
from tuna_jax.serving import building, schemas
from tuna_jax.serving.schemas import ChatRequest

pytestmark = pytest.mark.usefixtures("any_words")
LONGEST = {"a cat": 12, "a dog": 320, "two cats": 128, "three dogs": 319}


def _body(text, most):
    message = {"role": "user", "content": text}
    return {"messages": [message], "max_tokens": most, "temperature": 1.5, "seed": 11}


def test_short_and_long_answers(tuna):
    settings = dataclasses.replace(
        SETTINGS, tasks=("chat",), max_new_tokens=320, max_images=1, text_slots=2
    )
    expected = {}
    for text, most in LONGEST.items():
        message = {"role": "user", "content": [{"type": "text", "text": text}]}
        options = {"max_new_tokens": most, "temperature": 1.5, "seed": 11}
        (expected[text],) = tuna.reply([Conversation((message,))], **options)
    with start(tuna, settings) as running:
        scheduler = running.server.scheduler
        short, long = scheduler.texts
        assert short.shapes <= long.shapes
        for text, most in LONGEST.items():
            body = schemas.parse(ChatRequest, _body(text, most))
            (row,) = building.text_rows(tuna, scheduler.served, body, {})
            assert (short.fits(row), long.fits(row)) == (most <= 128, True)

        def ask(text):
            body = _body(text, LONGEST[text])
            response = httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=60)
            return text, response.json()["choices"][0]["message"]["content"]

        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(ask, [*LONGEST, *LONGEST]))
        assert answers == [(text, expected[text]) for text in [*LONGEST, *LONGEST]]
        assert running.server.metrics.compiles == 0
