"""The parameters of a LoRA: which layers, what is trained, merging, dropout, and the digest of the frozen model."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests.fixtures.random_params import random_like
from tuna_jax.adapters import digest, lora, targets
from tuna_jax.adapters.settings import LoraSettings
from tuna_jax.config import preset
from tuna_jax.models import tuna
from tuna_jax.models.low_rank import LowRank
from tuna_jax.utils.param_tree import flatten, unflatten

TINY = preset("tiny")
ALL = LoraSettings(targets=("all-linear",), rank=3, alpha=6.0)


def random_params(config, seed=0):
    """Random weights: the zeros of AdaLN-Zero would hide dependencies."""
    return jax.tree.map(jnp.asarray, random_like(tuna.shapes(config), seed))


def random_adapter(settings, config, base, seed=1):
    """An adapter whose b is not zero."""
    random = np.random.default_rng(seed)
    trained = lora.Adapters(settings, tuna.shapes(config)).init(jax.random.key(seed), base)
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * random.standard_normal(leaf.shape).astype(np.float32), trained
    )


def outputs(config, params):
    """Logits and the flow head's predictions of two rows with an image each."""
    random = np.random.default_rng(0)
    height, width = 2, 4
    tokens = jnp.asarray(random.integers(0, config.language.vocabulary, (2, 16)), jnp.int32)
    spans = jnp.array([[[3, 1 + height * width]], [[2, 1 + height * width]]], jnp.int32)
    shape = (2, 1, 1, height, width, config.space.latent_channels)
    latents = jnp.asarray(random.standard_normal(shape), jnp.float32)
    t = jnp.array([[0.3], [1.0]])

    @jax.jit
    def run(params):
        out = tuna.forward(config, params, tokens, spans, latents, t)
        return tuna.logits(config, params, out.hidden), out.prediction

    return run(params)


# ---- which layers ------------------------------------------------------------------------------


def test_presets_and_patterns_name_layers() -> None:
    shapes = flatten(tuna.shapes(TINY))
    every = targets.select(["all-linear"], shapes)
    kernels = [name for name in shapes if name.endswith(".kernel")]
    assert [f"{path}.kernel" for path in every] == [k for k in kernels if "language.head" not in k]
    assert targets.select(["language.attention"], shapes) == [
        path for path in every if path.startswith("language.") and "mlp" not in path
    ]
    assert targets.select(["language.mlp", "representation.mlp"], shapes) == [
        path
        for path in every
        if path.startswith("language.layers.mlp.")
        or path in ("representation.layers.up", "representation.layers.down")
    ]
    assert targets.select(["connector"], shapes) == ["connector.down", "connector.up"]
    assert targets.select(["flow_head.layers.mlp.*p"], shapes) == ["flow_head.layers.mlp.up"]


@pytest.mark.parametrize("name", [*targets.PRESETS])
def test_every_preset_names_layers_of_every_full_size_model(name: str) -> None:
    for model in ("tuna_7b", "tuna_r_7b", "tuna_2_7b"):
        config = preset(model)
        if name.startswith("representation") and not config.has_encoder:
            continue
        assert targets.select([name], flatten(tuna.shapes(config)))


def test_the_text_head_has_no_adapter() -> None:
    untied = dataclasses.replace(TINY, language=dataclasses.replace(TINY.language, tied=False))
    shapes = flatten(tuna.shapes(untied))
    assert "language.head.kernel" in shapes
    assert "language.head" not in targets.select(["all-linear"], shapes)


def test_a_pattern_that_matches_nothing_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"'language\.heads'.*language\.layers\.query.*all-linear"):
        lora.Adapters(LoraSettings(targets=("language.heads",)), tuna.shapes(TINY))
    wrong = LoraSettings(targets=("connector",), trained=("conector",))
    with pytest.raises(ValueError, match=r"config\.lora\.trained.*'conector'.*flow_head"):
        lora.Adapters(wrong, tuna.shapes(TINY))
    twice = LoraSettings(targets=("connector",), trained=("connector",))
    with pytest.raises(ValueError, match=r"config\.lora\.trained.*connector\.down"):
        lora.Adapters(twice, tuna.shapes(TINY))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rank": 0}, r"config\.lora\.rank is 0"),
        ({"rank": -1}, r"config\.lora\.rank is -1"),
        ({"alpha": 0.0}, r"config\.lora\.alpha"),
        ({"dropout": 1.0}, r"config\.lora\.dropout"),
        ({"base_dtype": "int8"}, r"config\.lora\.base_dtype"),
        ({"targets": (), "rank": 8}, r"config\.lora\.rank is given.*config\.lora\.targets"),
    ],
)
def test_wrong_settings_are_errors(changes: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LoraSettings(**{"targets": ("connector",), **changes})


# ---- what is trained, and what it computes ---------------------------------------------------------


def test_a_new_adapter_changes_nothing() -> None:
    base = random_params(TINY)
    adapters = lora.Adapters(ALL, tuna.shapes(TINY))
    trained = adapters.init(jax.random.key(0), base)
    assert jax.tree.map(lambda x: x.shape, trained) == jax.tree.map(
        lambda x: x.shape, adapters.shapes
    )
    flat = flatten(trained)
    assert all((flat[f"{path}{lora.B}"] == 0).all() for path in adapters.layers)
    for path in adapters.layers:  # Uniform between -1 / sqrt(in) and 1 / sqrt(in).
        a = np.asarray(flat[path + lora.A])
        bound = a.shape[-2] ** -0.5
        assert 0.7 * bound < np.abs(a).max() <= bound, path
    assert not np.array_equal(
        flat["language.layers.query" + lora.A], flat["language.layers.out" + lora.A]
    )
    for ours, own in zip(
        outputs(TINY, base), outputs(TINY, adapters.combined(base, trained)), strict=True
    ):
        np.testing.assert_array_equal(ours, own)


@pytest.mark.parametrize("changes", [{}, {"remat": "full"}, {"unroll": True}])
def test_a_merged_adapter_equals_one_that_is_not(changes: dict) -> None:
    config = dataclasses.replace(TINY, **changes)
    base = random_params(config)
    settings = dataclasses.replace(ALL, targets=("all-linear",), trained=("language.norm",))
    trained = random_adapter(settings, config, base)
    adapters = lora.Adapters(settings, tuna.shapes(config))
    merged = lora.merge(base, trained, settings.scale)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, base)
    beside = outputs(config, adapters.combined(adapters.frozen(base), trained))
    for ours, own, before in zip(
        outputs(config, merged), beside, outputs(config, base), strict=True
    ):
        scale = np.abs(np.asarray(own)).max()
        np.testing.assert_allclose(ours / scale, own / scale, atol=1e-6)
        assert np.abs(before / scale - own / scale).max() > 0.01, "the adapter changes the outputs"


def test_merging_adds_the_product_of_each_layer() -> None:
    base = random_params(TINY)
    trained = random_adapter(ALL, TINY, base)
    merged, flat, own = (flatten(tree) for tree in (lora.merge(base, trained, 2.0), base, trained))
    for name in flat:
        path = name.removesuffix(".kernel")
        if path + lora.A not in own:
            np.testing.assert_array_equal(merged[name], flat[name])
            continue
        a, b = np.asarray(own[path + lora.A]), np.asarray(own[path + lora.B])
        expected = np.asarray(flat[name], np.float64) + 2 * a.astype(np.float64) @ b
        np.testing.assert_allclose(merged[name], expected, rtol=1e-5, atol=1e-6)


def test_dropout_differs_by_step_layer_and_place_and_keeps_the_mean() -> None:
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((2, 64, 32)), jnp.float32)
    a, b = (jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in ((32, 4), (4, 8)))
    key = jax.random.key_data(jax.random.key(3))
    plain = LowRank(jnp.zeros((32, 8)), a, b, None, 2.0)
    dropped = LowRank(jnp.zeros((32, 8)), a, b, key, 2.0, 0.25)
    expected = 2 * np.asarray(x @ a @ b)
    np.testing.assert_allclose(plain.product(x), expected, rtol=1e-5, atol=1e-4)
    keys = jax.vmap(jax.random.key_data)(jax.random.split(jax.random.key(0), 2000))
    each = jax.lax.map(lambda k: dataclasses.replace(dropped, key=k).product(x), keys)
    deviation = np.abs(np.asarray(each).mean(0) - expected)
    assert deviation.max() < 0.15 * np.abs(expected).max()
    assert (np.asarray(each[0]) != np.asarray(each[1])).any()
    # Of a quarter of the inputs nothing is left.
    identity = LowRank(jnp.zeros((32, 32)), jnp.eye(32), jnp.eye(32), key, 1.0, 0.25)
    seen = np.asarray(identity.product(x))
    assert 0.2 < (seen == 0).mean() < 0.3
    np.testing.assert_allclose(seen[seen != 0], (np.asarray(x) / 0.75)[seen != 0], rtol=1e-6)

    base = random_params(TINY)
    settings = dataclasses.replace(ALL, dropout=0.5)
    adapters = lora.Adapters(settings, tuna.shapes(TINY))
    trained = random_adapter(settings, TINY, base)

    def prediction(key):
        return np.asarray(outputs(TINY, adapters.combined(base, trained, key))[1])

    first = prediction(jax.random.key(0))
    np.testing.assert_array_equal(first, prediction(jax.random.key(0)))
    assert (first != prediction(jax.random.key(1))).any()
    assert (first != prediction(None)).any()
    combined = flatten(adapters.combined(base, trained, jax.random.key(0)))
    layers = combined["language.layers.query.kernel"].key
    assert layers.shape[0] == TINY.language.layers
    assert len({tuple(np.asarray(layer)) for layer in layers}) == TINY.language.layers


def test_what_does_not_fit_is_listed() -> None:
    base = flatten(random_params(TINY))
    trained = flatten(random_adapter(ALL, TINY, unflatten(base)))
    lora.check_fits("both", trained, base)
    narrow = dict(trained)
    narrow["connector.up.lora.a"] = np.zeros((7, 3))
    narrow["language.layers.gate.lora.b"] = np.zeros((1, 3, 9))
    with pytest.raises(ValueError, match=r"both.*2 parameters.*connector\.up.*gate\.kernel"):
        lora.check_fits("both", narrow, base)


# ---- the digest -----------------------------------------------------------------------------------


def test_the_digest_is_that_of_the_model_not_of_how_it_is_held() -> None:
    params = random_params(TINY)
    flat = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
    expected = digest.of_arrays(params)
    assert len(expected) == 16
    assert digest.of_readable(flat, flat.__getitem__) == expected
    halved = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    assert digest.of_arrays(halved) == expected
    stored = {name: leaf.astype(ml_dtypes.bfloat16) for name, leaf in flat.items()}
    assert digest.of_readable(stored, stored.__getitem__) == expected


def test_the_digest_sees_each_value_its_place_and_its_name(monkeypatch) -> None:
    flat = {name: np.asarray(leaf) for name, leaf in flatten(random_params(TINY)).items()}
    expected = digest.of_readable(flat, flat.__getitem__)
    kernel = flat["connector.up.kernel"]
    one = kernel.copy()
    one[3, 5] += 0.01
    swapped = kernel.copy()
    swapped[[0, 1]] = kernel[[1, 0]]
    for changed in (one, swapped, np.ascontiguousarray(kernel.T).reshape(kernel.shape)):
        other = flat | {"connector.up.kernel": changed}
        assert digest.of_readable(other, other.__getitem__) != expected
    renamed = {name.replace("norm1", "norm3"): leaf for name, leaf in flat.items()}
    assert digest.of_readable(renamed, renamed.__getitem__) != expected
    monkeypatch.setattr(digest, "_CHUNK", 7)
    assert digest.of_readable(flat, flat.__getitem__) == expected, "in chunks"
