"""Features by layer are what the model itself computes on the way to its outputs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures.random_params import random_like
from tuna_jax.config import preset
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.evaluation import layer_features
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.models import tuna

TINY = preset("tuna_r_tiny")
# Unequal numbers of layers: a figure with the parts exchanged would have others.
CONFIG = dataclasses.replace(
    TINY,
    language=dataclasses.replace(TINY.language, layers=3, vocabulary=640),
    flow_head=dataclasses.replace(TINY.flow_head, layers=1),
)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jnp.asarray, random_like(tuna.shapes(CONFIG)))


def test_the_layers_lead_to_the_models_outputs(params):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    model = Tuna(CONFIG, params, {}, Tokenizer("emoji"), (32, 32))
    features = layer_features.layer_features(model, images)
    names = layer_features.names(CONFIG)
    assert names == [("visual", 0), *(("language", i) for i in (1, 2, 3)), ("flow_head", 1)]
    assert features.shape == (2, 5, 64)

    # The sequence <bos> <boi> [time] [img] x 4 <eoi>: its image tokens are 3 to 6.
    special = model.tokenizer.special
    tokens = jnp.asarray([[special.bos, special.boi, *[special.image_pad] * 5, special.eoi]] * 2)
    spans, latents = jnp.asarray([[[2, 5]]] * 2), jnp.asarray(images)[:, None]
    latents = layer_features.batching.encode(CONFIG, {}, latents)[0][:, None]

    @jax.jit
    def outputs(params):
        states = layer_features.hidden_states(CONFIG, params, tokens, spans, latents)
        bound = tuna.bind(CONFIG, params)
        layout = layer_features.sequence_layout(spans, 8)
        time = bound.time_embedding(jnp.ones((2, 1)))
        ends = (
            bound.language.norm(states.language[-1]),
            bound.flow_head.final(states.flow[-1], time, layout),
        )
        true = tuna.forward(CONFIG, params, tokens, spans, latents, jnp.ones((2, 1)))
        return states, ends, true, bound.visual_tokens(latents)

    states, ends, true, visual = outputs(params)
    np.testing.assert_allclose(ends[0], true.hidden, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ends[1], true.prediction, rtol=1e-5, atol=1e-5)
    stacked = np.concatenate([states.embedded[None], states.language, states.flow])
    np.testing.assert_allclose(
        features, np.moveaxis(stacked[:, :, 3:7].mean(2), 0, 1), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        features[:, 0], np.asarray(visual)[:, 0].mean(1), rtol=1e-4, atol=1e-5
    )
    assert not np.allclose(states.language[0], states.language[1])
