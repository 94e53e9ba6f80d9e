"""What encoders are trained on: the losses against direct computations, and what each module sees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tuna_jax.config import preset
from tuna_jax.emoji import encoder_objectives as objectives
from tuna_jax.models import layers, tuna

TINY = preset("tiny")
CONFIG = dataclasses.replace(
    TINY,
    language=dataclasses.replace(TINY.language, vocabulary=20),
    representation=dataclasses.replace(TINY.representation, layers=1),
)
TEXT = objectives.ContrastiveSettings(width=12, layers=1, heads=2, mlp=8, embedding=6)


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def built(make):
    """(structure, random parameters) of a module, without the time that its initialisation takes to compile."""
    graphdef, shapes = layers.split(nnx.eval_shape(make))
    leaves, tree = jax.tree.flatten(shapes)
    return graphdef, jax.tree.unflatten(
        tree, [0.3 * numbers(*leaf.shape, seed=i) for i, leaf in enumerate(leaves)]
    )


@pytest.fixture(scope="module")
def contrastive():
    return built(lambda: objectives.Contrastive(CONFIG, TEXT, 5, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def masked():
    return built(lambda: objectives.Masked(CONFIG, rngs=nnx.Rngs(0)))


def test_the_sigmoid_loss_is_a_sum_over_pairs():
    images, texts = numbers(4, 6), numbers(4, 6, seed=1)
    log_temperature, bias = 0.7, -2.0
    total = 0.0
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            cosine = image @ text / np.sqrt((image @ image) * (text @ text))
            logit = np.exp(log_temperature) * cosine + bias
            total -= np.log(1 / (1 + np.exp(-logit if i == j else logit)))
    ours = objectives.sigmoid_loss(images, texts, jnp.float32(log_temperature), jnp.float32(bias))
    np.testing.assert_allclose(ours, total / 4, rtol=1e-5)


def test_the_loss_is_the_error_at_hidden_tokens():
    predicted, latents = numbers(2, 5, 6), numbers(2, 5, 6, seed=1)
    hidden = np.array([[True, False, True, False, False], [False, True, True, False, False]])
    errors = [
        np.mean((predicted[row, token] - latents[row, token]) ** 2)
        for row, token in zip(*np.nonzero(hidden), strict=True)
    ]
    ours = objectives.hidden_error(predicted, latents, jnp.asarray(hidden))
    np.testing.assert_allclose(ours, np.mean(errors), rtol=1e-5)


def test_the_same_number_of_tokens_is_hidden_in_each_row():
    hidden = np.asarray(objectives.hide(jax.random.key(0), 50, 10, 0.6))
    assert (hidden.sum(1) == 6).all() and len(np.unique(hidden, axis=0)) > 30
    assert (hidden != np.asarray(objectives.hide(jax.random.key(1), 50, 10, 0.6))).any()
    shares = [(0.001, 1), (0.999, 9)]
    for share, count in shares:
        assert (np.asarray(objectives.hide(jax.random.key(0), 3, 10, share)).sum(1) == count).all()


def test_the_encoder_is_the_models(contrastive, masked):
    shapes = jax.tree.map(jnp.shape, tuna.shapes(CONFIG)["representation"])
    for _, params in (contrastive, masked):
        assert jax.tree.map(jnp.shape, params["representation"]) == shapes


def test_a_caption_is_the_mean_of_its_words(contrastive):
    """Of images the mean over tokens; norms and projections; and the loss and which caption is the nearest."""
    graphdef, params = contrastive
    tokens = jnp.asarray([[3, 4, 5, 0, 0], [7, 0, 0, 0, 0], [4, 3, 5, 0, 0]])
    latents = numbers(3, 1, 4, 4, 8)

    @jax.jit
    def run(params):
        module = layers.merge(graphdef, params)
        words = module.text(tokens)
        means = jnp.stack([words[0, :3].mean(0), words[1, 0], words[2, :3].mean(0)])
        expected_text = module.text_projection(module.text_norm(means))
        pooled = module.representation(latents).mean(1)
        expected_image = module.image_projection(module.image_norm(pooled))
        batch = {"latents": latents, "tokens": tokens}
        loss = objectives.contrastive_loss(0)(module, batch, jax.random.key(0))
        return module(latents, tokens, 0), (expected_image, expected_text), loss

    ours, expected, (value, logged) = run(params)
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    images, texts = (np.asarray(x) for x in ours)
    assert not np.allclose(texts[0], texts[2]), "the same words in another order"
    cosines = images @ (texts / np.linalg.norm(texts, axis=1, keepdims=True)).T
    assert logged["accuracy"] == pytest.approx(np.mean(cosines.argmax(1) == np.arange(3)))
    expected = objectives.sigmoid_loss(*ours, params["log_temperature"], params["bias"])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(
        [logged["temperature"], logged["bias"]],
        [np.exp(params["log_temperature"]), params["bias"]],
        rtol=1e-5,
    )


def test_hidden_latents_are_predicted_from_the_others(masked):
    graphdef, params = masked
    loss, key = objectives.masked_loss(objectives.MaskedSettings(hidden=0.5)), jax.random.key(0)
    latents = numbers(2, 1, 2, 2, 8)
    hidden = objectives.hide(key, 2, 4, 0.5)
    places = hidden.reshape(2, 1, 2, 2, 1)

    @jax.jit
    def run(params):
        module = layers.merge(graphdef, params)
        predicted = [
            module(latents + change, hidden) for change in (0.0, 1.0 * places, 1.0 * ~places)
        ]
        return predicted, loss(module, {"latents": latents}, key)[0]

    (plain, behind, seen), value = run(params)
    np.testing.assert_array_equal(behind, plain)
    assert not np.allclose(seen, plain)
    expected = objectives.hidden_error(plain, latents.reshape(2, 4, 8), hidden)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_that_hides_nothing_or_all_is_an_error(share):
    with pytest.raises(ValueError, match=r"config\.masked\.hidden"):
        objectives.MaskedSettings(hidden=share)
