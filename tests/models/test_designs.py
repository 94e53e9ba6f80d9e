"""The designs: their parts, what each sees, training and generation with each."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax.config import DESIGNS, TunaConfig, from_dict, preset
from tuna_jax.conversion import weight_map
from tuna_jax.inference.generation import flow_sampler, prefix_cache, reference
from tuna_jax.models import tuna
from tuna_jax.parallel import param_sharding
from tuna_jax.parallel.mesh import make_mesh


def _config(design: str) -> TunaConfig:
    return dataclasses.replace(preset("tiny"), design=design)


def _params(config: TunaConfig) -> Any:
    return jax.tree.map(
        lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape),
        tuna.init(config, jax.random.key(0)),
    )


def _batch() -> dict[str, jax.Array]:
    """Row 0 draws, row 1 is asked about."""
    key = jax.random.key(3)
    return {
        "tokens": jnp.asarray([[1, 4, 6, 9, 9, 9, 9, 9, 3, 2], [1, 6, 9, 9, 9, 9, 9, 3, 5, 2]]),
        "labels": jnp.asarray([[-100] * 10, [-100] * 8 + [5, 2]]),
        "spans": jnp.asarray([[[3, 5]], [[2, 5]]]),
        "is_target": jnp.asarray([[True], [False]]),
        "latents": jax.random.normal(key, (2, 1, 1, 2, 2, 8)),
        "images": jax.random.normal(jax.random.fold_in(key, 1), (2, 1, 1, 2, 2, 768)),
    }


def _loss(config: TunaConfig, params: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    noise = jax.random.normal(jax.random.key(4), batch["latents"].shape)
    return tuna.loss(config, params, batch, noise, jnp.full((2, 1), 0.4))[1]


PARTS = {
    "cascade": {"representation", "connector"},
    "decoupled": {"representation", "connector", "embedding"},
    "late_fusion": {"representation", "projection", "fusion"},
    "semantic_only": {"representation", "connector"},
    "latent_only": {"embedding"},
}


@pytest.mark.parametrize("design", DESIGNS)
def test_parts_and_their_sharding(design: str) -> None:
    shapes = tuna.shapes(_config(design))
    assert set(shapes) - {"time_embedding", "language", "flow_head"} == PARTS[design]
    param_sharding.shardings(shapes, make_mesh())
    seen = {"decoupled": 768, "semantic_only": 768, "cascade": 8, "late_fusion": 8}
    if design in seen:
        assert shapes["representation"]["patch"]["kernel"].shape[0] == seen[design]


@pytest.mark.slow
@pytest.mark.parametrize("design", ["decoupled", "late_fusion", "latent_only"])
def test_a_cached_trajectory_is_the_uncached_one(design: str) -> None:
    config = _config(design)
    params = _params(config)
    spans = jnp.asarray([[[1, 5]]])
    source = jax.random.normal(jax.random.key(8), (1, 1, 1, 2, 2, 8))
    images = None
    if config.sees_pixels:
        images = jax.random.normal(jax.random.key(9), (1, 1, 1, 2, 2, 768))
    positive, negative = (
        prefix_cache.Prefix(tokens, jnp.asarray([tokens.shape[1]]), spans, source, images)
        for tokens in (
            jnp.asarray([[1, 9, 9, 9, 9, 9, 2, 6]]),
            jnp.asarray([[1, 9, 9, 9, 9, 9, 6]]),
        )
    )
    noise = jax.random.normal(jax.random.key(5), (1, 1, 2, 2, 8))
    options = {"negative": negative, "guidance": 2.0, "steps": 3, "trajectory": True}
    cached = flow_sampler.sample(config, params, positive, noise, **options)
    whole = reference.sample(config, params, positive, noise, **options)
    assert float(jnp.linalg.norm(cached - whole) / jnp.linalg.norm(whole)) < 1e-5


def test_decoupled_sees_pixels_where_it_is_asked_and_latents_where_it_draws() -> None:
    config = _config("decoupled")
    params, batch = _params(config), _batch()
    run = jax.jit(lambda batch: _loss(config, params, batch))
    base = run(batch)

    def changed(name: str, row: int) -> dict[str, jax.Array]:
        return run({**batch, name: batch[name].at[row].add(1.0)})

    assert float(changed("images", 0)["flow_loss"]) == float(base["flow_loss"])
    assert float(changed("latents", 1)["text_loss"]) == float(base["text_loss"])
    assert float(changed("images", 1)["text_loss"]) != float(base["text_loss"])
    assert float(changed("latents", 0)["flow_loss"]) != float(base["flow_loss"])


def test_late_fusion_concatenates_semantic_features_before_the_projection() -> None:
    config = _config("late_fusion")
    params, latents = _params(config), _batch()["latents"]
    model = tuna.bind(config, params)
    tokens = model.visual_tokens(latents)
    semantic = model.representation(latents[:, 0])
    plain = model.projection(latents.reshape(2, 4, 8))
    x = np.concatenate([semantic, plain], -1).astype(np.float64)
    fusion = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["fusion"])
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * fusion["norm"]["scale"]
    x = x @ fusion["up"]["kernel"] + fusion["up"]["bias"]
    erf = np.vectorize(__import__("math").erf)
    x = 0.5 * x * (1 + erf(x / np.sqrt(2)))
    x = x @ fusion["down"]["kernel"] + fusion["down"]["bias"]
    np.testing.assert_allclose(tokens[:, 0], x, atol=1e-4)


def test_a_design_that_sees_pixels_needs_them() -> None:
    config = _config("semantic_only")
    params, batch = _params(config), _batch()
    assert float(_loss(config, params, batch)["text_loss"]) > 0
    del batch["images"]
    with pytest.raises(ValueError, match="clean pixels"):
        _loss(config, params, batch)


def test_unknown_designs_are_named() -> None:
    with pytest.raises(ValueError, match="design is 'fusion'.*late_fusion"):
        from_dict({"preset": "tiny", "design": "fusion"})
    with pytest.raises(weight_map.ConversionError, match="late_fusion"):
        weight_map.rows(_config("late_fusion"))
