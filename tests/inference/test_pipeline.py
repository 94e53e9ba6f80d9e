"""TaskFunctions of a model that lies on a mesh; what they make is tested with the recipes that use them."""

import dataclasses

import numpy as np
import pytest

from tuna_jax.emoji import model_bundle
from tuna_jax.emoji.config import EmojiExperiment
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.scoring import likelihoods
from tuna_jax.utils.config_parsing import parse


class Recorder:
    """A sharding that leaves all as it is, and keeps what it was asked to place."""

    platform = "cpu"

    def __init__(self):
        self.placed = set()

    def constrain(self, x, axes):
        self.placed.add(axes)
        return x

    def parts(self, name, size):
        return 1

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
    ids=["draws", "edits", "answers", "judges"],
)
def test_what_is_computed_is_laid_out_as_the_placement_says(tmp_path, tiny_run, call):
    values = tiny_run.experiment(tmp_path)
    world = model_bundle.load_bundle(parse(EmojiExperiment, values))
    recorder = Recorder()
    model = dataclasses.replace(world.model(tiny_run.parameters(values, 0)), sharding=recorder)
    call(model)
    assert {NETWORK, VAE} <= recorder.placed
