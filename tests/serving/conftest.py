"""A real server of the tiny model on a loopback port, and OpenAI's own client."""

import base64
import io
from collections.abc import Iterator

import numpy as np
import openai
import pytest
from PIL import Image

from tests.fixtures.random_images import random_image
from tuna_jax.serving.app import Server
from tuna_jax.serving.run import InThread
from tuna_jax.serving.settings import Settings

SETTINGS = Settings(
    text_slots=4,
    image_slots=2,
    clip_slots=1,
    prompt_tokens=(128,),
    image_prompt_tokens=(32,),
    max_new_tokens=64,
    max_images=2,
    frames=(5,),
    queue=40,
    max_bytes=1 << 20,
    max_pixels=1_000_000,
    max_video_frames=100,
    jobs=3,
)


def start(model, settings=SETTINGS, keys=None) -> InThread:
    """A server in a thread, to be entered."""
    return InThread(Server(model, settings, keys))


@pytest.fixture(scope="module")
def running(tuna) -> Iterator[InThread]:
    """The server of a test file, which must be as good at its end as at its start."""
    with start(tuna) as running:
        yield running
        assert running.server.metrics.compiles == 0


@pytest.fixture(scope="module")
def client(running) -> openai.OpenAI:
    """OpenAI's client."""
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0, timeout=60)


def png(seed: int = 0) -> bytes:
    """A picture as a file."""
    file = io.BytesIO()
    Image.fromarray(random_image(seed)).save(file, "PNG")
    return file.getvalue()


def data_url(content: bytes, kind: str = "image/png") -> str:
    """A file as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def pixels(text: str) -> np.ndarray:
    """The picture in base64, or in a data URL."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text.rpartition(",")[2]))))
