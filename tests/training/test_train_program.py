"""The program of a step: encoding of pixels, compilation per shape, frozen parameters, and FLOPs."""

import dataclasses
import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tuna_jax.config import preset
from tuna_jax.models import tuna, vae
from tuna_jax.parallel.mesh import make_mesh
from tuna_jax.training import optimizer, state, step
from tuna_jax.training.config import LoopSettings
from tuna_jax.training.optimizer import OptimizerSettings
from tuna_jax.training.step import NO_LIMITS, Heads
from tuna_jax.training.train_program import Program, encode

TINY = preset("tiny")
ADAM = OptimizerSettings(warmup=1, ema=0.0)


@functools.cache
def tiny_vae():
    return vae.init(TINY.vae, jax.random.key(3), image_only=True)


posterior = jax.jit(vae.posterior, static_argnums=(0, 3))


def pixels(rows=2, slots=3, side=32):
    return (
        np.random.default_rng(0).integers(0, 256, (rows, slots, 1, side, side, 3)).astype(np.uint8)
    )


def batch(length=24, rows=2, slots=1, side=32):
    tokens = np.random.default_rng(1).integers(0, 90, (rows, length)).astype(np.int32)
    span = 1 + (side // 16) ** 2
    return {
        "tokens": tokens,
        "labels": np.where(np.arange(length) > 12, tokens, -100).astype(np.int32),
        "spans": np.tile(np.array([2, span], np.int32), (rows, slots, 1)),
        "is_target": np.ones((rows, slots), bool),
        "pixels": pixels(rows, slots, side),
        "stream": np.zeros(rows, np.int32),
    }


def test_every_slot_is_a_sample_of_its_posterior():
    sample = jax.jit(encode, static_argnums=(0, 1))
    latents = sample(TINY.vae, jnp.float32, tiny_vae(), jnp.asarray(pixels()), jax.random.key(1))
    noise = jax.random.normal(jax.random.key(1), (6, 1, 2, 2, TINY.vae.latent_channels))
    for row in range(2):
        for slot in range(3):
            mean, std = posterior(TINY.vae, tiny_vae(), pixels()[row, slot][None])
            expected = mean[0] + std[0] * noise[3 * row + slot]
            np.testing.assert_allclose(latents[row, slot], expected, rtol=1e-4, atol=1e-5)


def test_the_posterior_of_bytes_equals_that_of_scaled_pixels():
    clips = pixels()[:, 0]
    mean, std = posterior(TINY.vae, tiny_vae(), clips)
    scaled = jnp.asarray(clips / 127.5 - 1.0, jnp.float32)
    expected, log_var = jax.jit(vae.encode, static_argnums=0)(TINY.vae, tiny_vae(), scaled)
    np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(std, vae.posterior_std(TINY.vae, log_var), rtol=1e-4)
    half = posterior(TINY.vae, tiny_vae(), clips, jnp.bfloat16)
    assert half[0].dtype == half[1].dtype == jnp.float32
    np.testing.assert_allclose(half[0], mean, atol=0.1 * float(jnp.abs(mean).max()))


def latents():
    """`batch` with latents in place of pixels, so that the VAE is not in the program."""
    inputs = {name: array for name, array in batch().items() if name != "pixels"}
    return inputs | {"latents": np.zeros((2, 1, 1, 2, 2, TINY.vae.latent_channels), np.float32)}


def test_a_program_is_compiled_once_per_shape_and_heads():
    program = Program(LoopSettings(steps=10, optimizer=ADAM), TINY, ("one",), make_mesh())
    first = program.compile(latents(), None)
    assert program.compile(latents(), None) is first
    assert program.compile(latents(), None, Heads(None, 0)) is not first
    assert program.count == 2
    state, window = first(program.initial(), program.place(latents()), None)
    assert int(state.step) == 1
    assert float(window["flow_sum"][0]) > 0
    assert float(window["text_count"][0]) == 2 * 11


def test_shapes_are_compiled_in_threads_and_a_step_never_waits_for_another_shape():
    program = Program(LoopSettings(steps=10, optimizer=ADAM), TINY, ("one",), make_mesh())
    heads, busy = Heads(None, 0), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(busy.wait)
        program.compile_ahead([(latents(), NO_LIMITS), (latents(), heads)], None, pool)
        assert program.expects(latents()) and program.expects(latents(), heads)
        assert not program.expects(latents(), Heads(0, None))
        assert program.check_ahead() == 2 and program.count == 0
        first = program.compile(latents(), None)  # The thread is busy.
        busy.set()
        second = program.compile(latents(), None, heads)
        assert program.check_ahead() == 0 and program.count == 2
        assert program.compile(latents(), None) is first
        assert program.compile(latents(), None, heads) is second is not first


def test_an_error_of_a_thread_that_compiles_is_raised_before_the_shape_occurs():
    settings = LoopSettings(steps=10, optimizer=ADAM, accumulate=4)
    program = Program(settings, TINY, ("one",), make_mesh())
    with ThreadPoolExecutor(1) as pool:
        program.compile_ahead([(latents(), NO_LIMITS)], None, pool)
    with pytest.raises(ValueError, match=r"config\.accumulate"):
        program.check_ahead()


def test_a_batch_that_cannot_be_divided_into_parts_is_an_error():
    settings = LoopSettings(steps=10, optimizer=ADAM, accumulate=4)
    program = Program(settings, TINY, ("one",), make_mesh())
    with pytest.raises(ValueError, match=r"config\.accumulate=4"):
        program.batch_shapes(batch())
    with pytest.raises(ValueError, match=r"config\.accumulate"):
        LoopSettings(steps=10, accumulate=0)


def test_frozen_parameters_have_no_gradient():
    """The step has fewer FLOPs, even before it is compiled, if the language model is frozen."""

    def products(frozen):
        settings = LoopSettings(
            steps=10, optimizer=OptimizerSettings(warmup=1, ema=0.0, frozen=frozen)
        )
        program = Program(settings, TINY, ("one",), make_mesh())
        run = functools.partial(program.step, heads=Heads(None, 0))
        costs = jax.jit(run).lower(program.abstract_state, latents(), None).cost_analysis()
        assert costs is not None
        return costs["flops"]

    assert products(("language",)) < 0.9 * products(())


def test_moments_are_sampled_in_the_step():
    """The loss receives samples of the posterior with new noise at every step."""
    sampled = []

    def loss(params, batch, noise, t, heads):
        sampled.append(batch["latents"])
        return jnp.sum(params["w"] ** 2), {
            name: jnp.ones(2) for name in ("flow_sum", "flow_count", "text_sum", "text_count")
        }

    shape = (2, 3, 4, 4, 4, 5)
    moments = np.stack([np.full(shape, 2.0), np.full(shape, 0.25)], 2).astype(ml_dtypes.bfloat16)
    update = optimizer.build(ADAM, {"w": jnp.ones(3)}, 10)
    window = step.empty_window(1)
    current = state.initial(
        lambda _: {"w": jnp.ones(3)}, optimizer=update, window=window, seed=0, average=False
    )
    run = step.make_step(
        loss, update, lambda key, shape: jnp.zeros(shape), ema=0.0, log_every=5, tasks=1
    )
    inputs = {
        "moments": jnp.asarray(moments),
        "is_target": jnp.ones((2, 3), bool),
        "stream": jnp.zeros(2, int),
    }
    for _ in range(2):
        current, _ = run(current, inputs)
    noise = (np.stack(sampled) - 2.0) / 0.25
    assert noise.shape == (2, *shape) and noise.dtype == np.float32
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    assert len(np.unique(noise)) > 0.99 * noise.size, "every slot and step has its own noise"


def test_model_flops_exclude_rematerialisation_and_padding():
    """Six per parameter and token, and dense attention, for every backend and rematerialisation."""
    mesh, settings = make_mesh(devices=jax.devices()[:1]), LoopSettings(steps=1, optimizer=ADAM)
    inputs = latents()
    counted = {
        changes: Program(
            settings, dataclasses.replace(TINY, **dict([changes])), ("t2i",), mesh
        ).model_flops(inputs, None)
        for changes in (("remat", "none"), ("remat", "full"), ("attention_backend", "splash"))
    }
    plain = counted["remat", "none"]
    assert set(counted.values()) == {plain}
    tokens, params = 2 * 24, jax.eval_shape(lambda: tuna.init(TINY, jax.random.key(0)))
    kernels = [leaf.size for leaf in jax.tree.leaves((params["language"], params["flow_head"]))]
    assert 0.7 < plain / (6 * tokens * sum(kernels)) < 1.5


def test_model_flops_of_a_text_loss_in_chunks_count_tokens_with_labels():
    mesh, settings = make_mesh(devices=jax.devices()[:1]), LoopSettings(steps=1, optimizer=ADAM)
    inputs = latents()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
    labels = np.full_like(inputs["labels"], -100)
    labels[0, 3:8] = labels[1, 11] = 7

    @functools.cache
    def program(chunk: int) -> Program:
        return Program(settings, dataclasses.replace(TINY, text_chunk=chunk), ("t2i",), mesh)

    def counted(chunk: int, batch, heads=NO_LIMITS) -> int:
        return program(chunk).model_flops(batch, None, heads)

    few, none = inputs | {"labels": labels}, inputs | {"labels": np.full_like(labels, -100)}
    without_text, size = counted(0, inputs, Heads(None, 0)), TINY.language
    per_token = 6 * size.width * size.vocabulary
    assert counted(8, none) == without_text
    assert counted(8, few) == without_text + 6 * per_token
    assert counted(8, few, Heads(None, 1)) == without_text + 6 * per_token
    assert counted(0, few) == counted(8, shapes) == without_text + 2 * 24 * per_token
