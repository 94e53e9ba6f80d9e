"""`Tuna`'s own methods, what importing it loads, and that its computations are sharded."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

import tuna_jax
from tests.fixtures.random_images import random_image
from tuna_jax.emoji import model_bundle
from tuna_jax.emoji.config import EmojiExperiment
from tuna_jax.inference import batching
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.scoring import likelihoods
from tuna_jax.utils.config_parsing import parse

pytestmark = pytest.mark.usefixtures("any_words")


def _printed(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_package_is_cheap_to_import():
    code = "import sys, tuna_jax; print(sorted({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    assert _printed(code) == "[]"
    with pytest.raises(AttributeError, match="Tunna"):
        tuna_jax.Tunna  # noqa: B018


def test_tuna_imports_neither_the_emoji_demo_nor_training_libraries():
    code = """
import sys, tuna_jax
tuna_jax.Tuna
names = ("tuna_jax.emoji", "tuna_jax.training", "tuna_jax.conversion", "orbax", "grain", "torch")
print([name for name in sys.modules if name.startswith(names)])
"""
    assert _printed(code) == "[]"


def test_prompt_tokens_have_a_slot_of_each_clips_latents(tuna):
    conversation = Conversation.of([np.zeros((5, 64, 32, 3), np.uint8)], "what happens?")
    assert tuna.prompt_tokens(conversation).spans[:, 1].tolist() == [1 + 2 * 4 * 2]
    plain = dataclasses.replace(tuna, template="plain").prompt_tokens(conversation)
    assert plain.spans.tolist() == [[2, 17]]


def test_a_prefix_has_the_latents_of_its_media_by_row(tuna):
    images = [random_image(seed)[None] for seed in range(4)]
    media = [images[:2], images[2:]]
    prompts = [tuna.prompt_tokens(Conversation.of(row, "what differs?")) for row in media]
    prefix = tuna.prefix(prompts, media, 96)
    assert prefix.tokens.shape == (2, 96)
    assert prefix.latents is not None and prefix.latents.shape == (2, 2, 1, 4, 4, 8)
    for row in range(2):
        latents, _ = batching.encode(tuna.config, tuna.vae_params, np.stack(media[row]))
        np.testing.assert_allclose(prefix.latents[row], latents, atol=1e-5)
    text_only = tuna.prefix([tuna.prompt_tokens(Conversation.of([], "hello"))], [()])
    assert text_only.latents is None and text_only.spans.shape == (1, 0, 2)


def test_media_are_loaded_in_the_models_size(tuna):
    image, clip = tuna.load_media([random_image(0, 90, 50), np.zeros((5, 32, 32, 3), np.uint8)])
    assert image.shape == (1, 64, 64, 3)
    assert clip.shape == (5, 64, 64, 3)
    assert tuna.load_media([]) == []


class RecordedSharding:
    """A sharding that changes nothing and records the axes that it is called with."""

    platform = "cpu"

    def __init__(self):
        self.axes = set()

    def constrain(self, x, axes):
        self.axes.add(axes)
        return x

    def parts(self, name, size):
        return 1

    def ring_axes(self):
        return {}

    def local(self, function, inputs, output):
        return function


NETWORK, VAE = ("batch", "sequence", "width"), ("batch", None, None, None, None)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.generate_image(["a cat"]),
        lambda model: model.edit_image([np.zeros((64, 64, 3), np.uint8)], ["remove the cat"]),
        lambda model: model.answer(
            np.zeros((64, 64, 3), np.uint8), "what is this?", max_new_tokens=2
        ),
        lambda model: likelihoods(
            model,
            [Conversation.of([np.zeros((1, 64, 64, 3), np.uint8)], "what is this?")],
            ["a cat"],
        ),
    ],
    ids=["generates", "edits", "answers", "scores"],
)
def test_network_and_vae_are_sharded(tmp_path, tiny_run, call):
    values = tiny_run.experiment(tmp_path)
    bundle = model_bundle.load_bundle(parse(EmojiExperiment, values))
    sharding = RecordedSharding()
    model = dataclasses.replace(bundle.model(tiny_run.parameters(values, 0)), sharding=sharding)
    call(model)
    assert {NETWORK, VAE} <= sharding.axes
