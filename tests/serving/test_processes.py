"""A server of two processes with two devices each: its results are those of a model by itself, and SIGTERM ends it."""

import concurrent.futures
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.serving.conftest import pixels
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.pipeline import Tuna

ROOT = Path(__file__).parents[2]
QUESTIONS = ["what is a dog?", "what is a cat?", "what is a car?"]
PROMPT = "a red apple on a blue background"


@pytest.fixture(scope="module")
def process():
    command = [sys.executable, str(ROOT / "launchers/local.py"), "--processes=2", "--devices=2"]
    command += ["--", sys.executable, "-m", "tuna_jax.serve", "--model=emoji", "--port=0"]
    command += ["--tasks=chat,image", "--max_new_tokens=16", "--max_images=1", "--frames=5"]
    command += ["--prompt_tokens=64", "--image_prompt_tokens=32", "--text_slots=2"]
    with subprocess.Popen(
        [*command, "--image_slots=2"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        yield process
        process.kill()


@pytest.fixture(scope="module")
def url(process):
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "ready: " in line:
            return line.partition("ready: ")[2].split()[0]
    raise AssertionError("".join(lines))


def _ask(url, question):
    messages = [{"role": "user", "content": question}]
    body = {"messages": messages, "max_tokens": 12, "temperature": 1.0, "seed": 7}
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
    return response.json()["choices"][0]["message"]["content"]


def _generate(url, seed):
    body = {"prompt": PROMPT, "seed": seed, "num_inference_steps": 4}
    response = httpx.post(f"{url}/v1/images/generations", json=body, timeout=120)
    return pixels(response.json()["data"][0]["b64_json"])


@pytest.mark.slow
def test_results_are_those_of_the_model_by_itself_and_sigterm_ends_all(url, process):
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        texts = [threads.submit(_ask, url, question) for question in QUESTIONS]
        images = [threads.submit(_generate, url, seed) for seed in (3, 4)]
    model = Tuna.load("emoji")
    for question, text in zip(QUESTIONS, texts, strict=True):
        message = {"role": "user", "content": [{"type": "text", "text": question}]}
        options = {"max_new_tokens": 12, "temperature": 1.0, "seed": 7}
        assert model.reply([Conversation((message,))], **options) == [text.result()]
    for seed, image in zip((3, 4), images, strict=True):
        (wanted,) = model.generate_image([PROMPT], seed=seed, steps=4)
        assert np.abs(image.result().astype(int) - wanted).max() <= 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
