"""The training step of an adapter: gradients, what changes, what is held, and pixel models."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.fixtures.random_params import random_like
from tuna_jax import flow
from tuna_jax.adapters import lora
from tuna_jax.adapters.settings import LoraSettings
from tuna_jax.config import preset
from tuna_jax.models import tuna
from tuna_jax.parallel.mesh import make_mesh
from tuna_jax.training.config import LoopSettings
from tuna_jax.training.optimizer import OptimizerSettings
from tuna_jax.training.train_program import Program
from tuna_jax.utils.param_tree import flatten

TINY = preset("tiny")
ADAM = OptimizerSettings(warmup=1, learning_rate=1e-2, weight_decay=0.0, clip_norm=1e9, ema=0.9)
LORA = LoraSettings(targets=("all-linear",), rank=2, alpha=4.0, trained=("flow_head.final.norm",))
KEY = np.asarray([3, 5], np.uint32)


def batch(config, rows=4, length=24):
    random = np.random.default_rng(1)
    tokens = random.integers(0, 90, (rows, length)).astype(np.int32)
    shape = (rows, 1, 1, 2, 2, config.space.latent_channels)
    return {
        "tokens": tokens,
        "labels": np.where(np.arange(length) > 12, tokens, -100).astype(np.int32),
        "spans": np.tile(np.array([2, 5], np.int32), (rows, 1, 1)),
        "is_target": np.arange(rows)[:, None] % 2 == 0,
        "latents": random.standard_normal(shape).astype(np.float32),
        "stream": np.zeros(rows, np.int32),
    }


def program_of(config=TINY, lora_settings=LORA, **changes):
    settings = LoopSettings(
        steps=10, log_every=1, optimizer=ADAM, lora=lora_settings, compile_threads=0, **changes
    )
    return Program(settings, config, ("one",), make_mesh(devices=jax.devices()[:1]))


def started(program, base):
    """The state with an adapter that changes something, and what is frozen."""
    random = np.random.default_rng(5)
    state = program.initial(base=base)
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * random.standard_normal(leaf.shape).astype(np.float32),
        state.params,
    )
    return state._replace(params=params, key=jnp.asarray(KEY)), program.frozen(None, base)


def first_gradient(state):
    """Adam's first moment after one step is the gradient, times a number."""
    (moments,) = [
        part.mu
        for part in jax.tree.leaves(state.optimizer, is_leaf=lambda x: hasattr(x, "mu"))
        if hasattr(part, "mu")
    ]
    return jax.tree.map(lambda x: np.asarray(x) / (1 - ADAM.b1), moments)


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"remat": "full"}])
def test_the_gradient_is_that_through_the_merged_kernels(changes: dict) -> None:
    config = dataclasses.replace(TINY, remat=changes.get("remat", "none"))
    program = program_of(config, accumulate=changes.get("accumulate", 1))
    base = jax.tree.map(jnp.asarray, random_like(tuna.shapes(config)))
    inputs = batch(config)
    state, frozen = started(program, base)
    params = jax.tree.map(np.asarray, state.params)

    time_key, noise_key = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(KEY), 0))
    t = flow.sample_time(time_key, (4, 1), mean=0.0, std=1.0, mu=flow.shift_mu())
    noise = jax.random.normal(noise_key, inputs["latents"].shape)
    arrays = jax.tree.map(jnp.asarray, inputs)

    @jax.jit
    @jax.value_and_grad
    def reference(params):
        return tuna.loss(config, lora.merge(base, params, LORA.scale), arrays, noise, t)[0]

    value, expected = reference(params)
    run = program.compile(inputs, frozen)
    state, window = run(state, program.place(inputs), frozen)
    assert float(window["loss"]) == pytest.approx(float(value), rel=1e-5)
    gradient = flatten(first_gradient(state))
    for name, leaf in flatten(expected).items():
        bound = 1e-4 * np.abs(leaf).max()
        np.testing.assert_allclose(gradient[name], leaf, atol=bound, err_msg=name)
        assert bound > 0, name


def test_only_adapters_and_named_parts_change_and_are_held() -> None:
    base = jax.tree.map(jnp.asarray, random_like(tuna.shapes(TINY)))
    before = jax.tree.map(np.array, base)
    program = program_of(lora_settings=dataclasses.replace(LORA, dropout=0.2))
    inputs = batch(TINY)
    state, frozen = started(program, base)
    start = jax.tree.map(np.array, state.params)
    run = program.compile(inputs, frozen)
    for _ in range(3):
        state, _ = run(state, program.place(inputs), frozen)
    for name, leaf in flatten(base).items():
        np.testing.assert_array_equal(leaf, flatten(before)[name], err_msg=name)
    names = set(flatten(state.params))
    assert names == {
        f"{path}{end}" for path in program.adapters.layers for end in (lora.A, lora.B)
    } | {"flow_head.final.norm.scale"}
    for name, leaf in flatten(state.params).items():
        assert (np.asarray(leaf) != flatten(start)[name]).any(), name
    # The average and the optimizer's two moments are of the same tree; nothing has the size of the model.
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.ema)) == count
    large = [leaf.size for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    assert sum(large) == 2 * count

    whole = Program(
        LoopSettings(steps=10, optimizer=ADAM), TINY, ("one",), make_mesh(devices=jax.devices()[:1])
    )

    def size(tree):
        return sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    full = sum(leaf.size for leaf in jax.tree.leaves(base))
    assert size(whole.shapes.optimizer) >= 8 * full
    assert size(program.shapes) / size(whole.shapes) == pytest.approx(count / full, rel=0.05)


def test_the_loss_falls_and_a_frozen_model_in_bfloat16_costs_little() -> None:
    base = jax.tree.map(jnp.asarray, random_like(tuna.shapes(TINY)))
    inputs, losses = batch(TINY), []
    for dtype in ("float32", "bfloat16"):
        program = program_of(lora_settings=dataclasses.replace(LORA, base_dtype=dtype))
        own = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), base)
        state, frozen = program.initial(base=own), program.frozen(None, own)
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(frozen.base))
        shapes = program.abstract_frozen(None).base
        assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
            lambda x: (x.shape, x.dtype), frozen.base
        )
        run = program.compile(inputs, frozen)
        for _ in range(8):
            state, window = run(state, program.place(inputs), frozen)
            losses.append(float(window["loss"]))
    assert losses[7] < 0.9 * losses[0]
    assert losses[8] == pytest.approx(losses[0], rel=0.02)


def test_a_pixel_model_has_adapters() -> None:
    config = preset("tuna_2_tiny")
    base = jax.tree.map(jnp.asarray, random_like(tuna.shapes(config)))
    settings = LoraSettings(targets=("language.attention", "embedding.patch"), rank=2)
    program = program_of(config, settings)
    state, frozen = program.initial(base=base), program.frozen({}, base)
    inputs = batch(config)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 1, 1, 32, 32, 3)).astype(np.uint8)
    inputs = {k: v for k, v in inputs.items() if k != "latents"} | {"pixels": pixels}
    run = program.compile(inputs, frozen)
    state, window = run(state, program.place(inputs), frozen)
    assert np.isfinite(float(window["loss"]))
    moved = optax.global_norm(first_gradient(state))
    assert float(moved) > 0


def test_an_adapter_says_itself_what_is_trained() -> None:
    with pytest.raises(ValueError, match=r"config\.optimizer\.frozen.*config\.lora"):
        LoopSettings(steps=1, lora=LORA, optimizer=dataclasses.replace(ADAM, frozen=("language",)))
