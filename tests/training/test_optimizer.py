"""Schedule, frozen parameters, weight decay, clipping and Muon."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tuna_jax.training.optimizer import (
    OptimizerSettings,
    build,
    decayed,
    trainable,
    warmup_plateau_cosine,
)


def params():
    return {
        "language": {
            "layers": {"query": {"kernel": jnp.ones((2, 3, 4)), "bias": jnp.ones((2, 4))}}
        },
        "language_head": {"kernel": jnp.ones((3, 4))},
        "norm": {"scale": jnp.ones((3,))},
    }


def updated(settings, grads=None, steps=10):
    start = params()
    optimizer = build(settings, start, steps)
    grads = jax.tree.map(jnp.ones_like, start) if grads is None else grads
    state = optimizer.init(start)
    for _ in range(2):  # The first update of a warm-up has rate 0.
        updates, state = optimizer.update(grads, state, start)
    return optax.apply_updates(start, updates), state


def test_schedule_has_three_parts():
    rate = warmup_plateau_cosine(2.0, 100, 10, 0.4)
    assert rate(0) == 0.0
    assert rate(5) == pytest.approx(1.0)
    assert rate(10) == rate(59) == pytest.approx(2.0)
    assert rate(80) == pytest.approx(1.0)
    assert rate(100) == pytest.approx(0.0, abs=1e-6)


def test_a_schedule_without_tail_stays_constant():
    assert warmup_plateau_cosine(2.0, 100, 10, 0.0)(100) == pytest.approx(2.0)


def test_a_schedule_longer_than_the_run_is_an_error():
    with pytest.raises(
        ValueError, match=r"config\.optimizer\.warmup.*config\.optimizer\.cosine_tail.*60"
    ):
        warmup_plateau_cosine(1.0, 100, 70, 0.4)
    with pytest.raises(ValueError, match=r"60.*config\.steps"):
        warmup_plateau_cosine(1.0, 100, 120, 0.4)


def test_frozen_parameters_are_unchanged_and_have_no_moments():
    settings = OptimizerSettings(
        learning_rate=0.1, warmup=0, frozen=("language",), weight_decay=0.1
    )
    new, state = updated(settings)
    np.testing.assert_array_equal(new["language"]["layers"]["query"]["kernel"], np.ones((2, 3, 4)))
    assert not np.allclose(new["language_head"]["kernel"], 1.0), "a prefix matches only whole names"
    assert not np.allclose(new["norm"]["scale"], 1.0)
    moments = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim == 3]
    assert moments == [], "a frozen kernel must hold no Adam moments"


def test_frozen_gradients_do_not_count_for_clipping():
    grads = jax.tree.map(jnp.ones_like, params())
    grads["language"] = jax.tree.map(lambda leaf: 1e6 * leaf, grads["language"])
    settings = OptimizerSettings(
        learning_rate=1.0, warmup=0, frozen=("language",), weight_decay=0.0, epsilon=1.0
    )
    new, _ = updated(settings, grads)
    assert float(new["norm"]["scale"][0]) < 0.9


def test_an_unknown_frozen_prefix_is_an_error():
    with pytest.raises(ValueError, match=r"config\.optimizer\.frozen.*'langage'.*language_head"):
        build(OptimizerSettings(frozen=("langage",), warmup=0), params(), 10)
    assert jax.tree.leaves(trainable(params(), ()))


def test_only_kernels_decay_and_stacked_biases_do_not():
    mask = decayed(params())
    assert mask["language"]["layers"]["query"] == {"kernel": True, "bias": False}
    assert mask["norm"]["scale"] is False


def test_clipping_limits_the_step():
    huge = jax.tree.map(lambda leaf: 1e3 * jnp.ones_like(leaf), params())
    settings = {"learning_rate": 1.0, "warmup": 0, "weight_decay": 0.0, "epsilon": 1.0}
    clipped, _ = updated(OptimizerSettings(clip_norm=1.0, **settings), huge)
    free, _ = updated(OptimizerSettings(clip_norm=0.0, **settings), huge)
    assert float(clipped["norm"]["scale"][0]) > 0.7
    assert float(free["norm"]["scale"][0]) < 0.1


@pytest.mark.parametrize("size", [0.01, 3.0])
def test_clipping_equals_that_of_optax(size):
    """For norms above and below the limit."""
    settings = OptimizerSettings(learning_rate=0.1, warmup=0, clip_norm=1.0)
    grads = jax.tree.map(
        lambda leaf: size * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params()
    )
    clipped, _ = optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
    _, state = updated(settings, grads)
    _, expected = updated(OptimizerSettings(learning_rate=0.1, warmup=0, clip_norm=0.0), clipped)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_muon_treats_each_stacked_layer_as_a_matrix():
    params = {
        "layers": {"up": {"kernel": jnp.ones((2, 4, 3)), "bias": jnp.ones((2, 3))}},
        "conv": {"kernel": jnp.ones((3, 3, 2, 5))},
    }
    settings = OptimizerSettings(
        algorithm="muon", learning_rate=0.1, warmup=0, weight_decay=0.0, clip_norm=0.0
    )
    update = build(settings, params, 10)
    grads = jax.tree.map(jnp.zeros_like, params)
    first_layer = jax.random.normal(jax.random.key(0), (4, 3))
    grads["layers"]["up"]["kernel"] = grads["layers"]["up"]["kernel"].at[0].set(first_layer)
    grads["conv"]["kernel"] = jax.random.normal(jax.random.key(1), (3, 3, 2, 5))
    state = update.init(params)
    for _ in range(2):
        change, state = update.update(grads, state, params)
    kernel = change["layers"]["up"]["kernel"]
    assert float(jnp.abs(kernel[1]).max()) == 0.0
    # Orthogonalised: all singular values of an update are about the same.
    for matrix in (kernel[0], change["conv"]["kernel"].reshape(18, 5)):
        values = jnp.linalg.svd(matrix, compute_uv=False)
        assert float(values.min()) > 0.4 * float(values.max()) > 0


def test_an_unknown_algorithm_is_an_error():
    with pytest.raises(ValueError, match=r"optimizer\.algorithm.*'sgd'"):
        build(OptimizerSettings(algorithm="sgd"), {"kernel": jnp.ones((2, 2))}, 2000)


def test_decay_of_all_parameters_is_the_released_codes_adamw() -> None:
    """Three updates, compared with `torch.optim.AdamW` over all parameters, as the released code builds it."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    params = {
        name: random.normal(size=shape).astype(np.float32)
        for name, shape in {"kernel": (5, 4), "bias": (4,), "scale": (4,)}.items()
    }
    settings = OptimizerSettings(
        learning_rate=1e-2, warmup=0, clip_norm=0.0, weight_decay=0.3, decay="all"
    )
    theirs = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
    reference = torch.optim.AdamW(
        theirs.values(), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.3
    )
    ours = jax.tree.map(jnp.asarray, params)
    weights_only = dict(ours)
    update = build(settings, ours, 10)
    other = build(dataclasses.replace(settings, decay="weights"), ours, 10)
    state, other_state = update.init(ours), other.init(ours)
    for step in range(3):
        gradients = {
            name: random.normal(size=value.shape).astype(np.float32) * (step + 1)
            for name, value in params.items()
        }
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(gradients[name])
        reference.step()
        updates, state = update.update(gradients, state, ours)
        ours = optax.apply_updates(ours, updates)
        updates, other_state = other.update(gradients, other_state, weights_only)
        weights_only = optax.apply_updates(weights_only, updates)
    for name, parameter in theirs.items():
        np.testing.assert_allclose(ours[name], parameter.detach().numpy(), rtol=2e-6, atol=2e-7)
    np.testing.assert_allclose(weights_only["kernel"], ours["kernel"], rtol=1e-6)
    assert float(jnp.abs(weights_only["bias"] - ours["bias"]).max()) > 1e-3


def test_an_unknown_decay_is_named() -> None:
    with pytest.raises(ValueError, match="decay"):
        build(OptimizerSettings(decay="none"), {"kernel": jnp.ones((2, 2))}, 5000)


def test_only_the_named_layers_are_trained() -> None:
    tree = {
        "language": {"layers": {"kernel": jnp.ones((3, 2, 2))}, "embedding": jnp.ones((4, 2))},
        "flow_head": {"layers": {"kernel": jnp.ones((2, 2, 2))}},
    }
    settings = OptimizerSettings(
        learning_rate=0.1, warmup=0, weight_decay=0.5, trained=("language.layers[1]", "flow_head")
    )
    update = build(settings, tree, 10)
    state = update.init(tree)
    for _ in range(2):
        updates, state = update.update(jax.tree.map(jnp.ones_like, tree), state, tree)
        tree = optax.apply_updates(tree, updates)
    kernel = np.asarray(tree["language"]["layers"]["kernel"])
    assert (kernel[[0, 2]] == 1).all() and (kernel[1] < 0.9).all()
    assert (np.asarray(tree["language"]["embedding"]) == 1).all()
    assert (np.asarray(tree["flow_head"]["layers"]["kernel"]) < 0.9).all()


@pytest.mark.parametrize("prefix", ["language.layers[3]", "languages", "language.layers[a]"])
def test_a_trained_prefix_that_matches_nothing_is_named(prefix: str) -> None:
    tree = {"language": {"layers": {"kernel": jnp.ones((3, 2, 2))}}}
    with pytest.raises(ValueError, match=r"optimizer\.trained"):
        trainable(tree, (), (prefix,))


def test_clipping_ignores_layers_that_are_not_trained() -> None:
    tree = {"layers": {"kernel": jnp.zeros((2, 1, 1))}}
    settings = OptimizerSettings(
        learning_rate=1.0,
        warmup=0,
        weight_decay=0.0,
        clip_norm=1.0,
        trained=("layers[0]",),
        epsilon=1.0,
    )
    gradients = {"layers": {"kernel": jnp.asarray([[[0.5]], [[1e6]]])}}
    update = build(settings, tree, 10)
    updates, _ = update.update(gradients, update.init(tree), tree)
    # Adam's first update is g / (|g| + epsilon); a gradient that had been clipped with layer 1 would be near 0.
    np.testing.assert_allclose(updates["layers"]["kernel"][:, 0, 0], [-0.5 / 1.5, 0.0], rtol=1e-5)
