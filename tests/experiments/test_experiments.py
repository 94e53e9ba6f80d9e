"""Every experiment file makes a valid config, and its training step is traced without allocating arrays."""

import dataclasses
import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tuna_jax.config import from_dict
from tuna_jax.emoji import encoder_trainer, vae_trainer
from tuna_jax.emoji.config import EmojiExperiment
from tuna_jax.models import latent_space, tuna, vae
from tuna_jax.models.layers import split
from tuna_jax.parallel.mesh import make_mesh, sizes
from tuna_jax.trainers.config import MultitaskExperiment
from tuna_jax.trainers.stream_config import abstract_batch, possible_shapes, stream_settings
from tuna_jax.training import optimizer
from tuna_jax.training.step import Heads
from tuna_jax.training.train_program import Program
from tuna_jax.utils.config_parsing import parse

FILES = sorted(
    path
    for room in ("emoji", "tuna", "ablations/encoders")
    for path in (Path(__file__).parents[2] / "experiments" / room).glob("*.py")
)
KINDS = {
    "emoji": EmojiExperiment,
    "multitask": MultitaskExperiment,
    "vae": vae_trainer.VAESettings,
    "encoder": encoder_trainer.EncoderSettings,
}


def load(path):
    values = runpy.run_path(str(path))["get_config"]().to_dict()
    return parse(KINDS[values["kind"]], values)


def of_kind(*kinds):
    paths = [path for path in FILES if load(path).kind in kinds]
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def test_every_kind_has_an_experiment():
    assert {load(path).kind for path in FILES} == set(KINDS)


def check(program, batch, vae_params, heads):
    """The step returns a state of the same shapes; metrics are scalars, or have a number per stream."""
    state, window = program.eval_shape(batch, vae_params, heads)
    same = jax.tree.map(
        lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, program.abstract_state
    )
    assert all(jax.tree.leaves(same))
    assert window["flow_sum"].shape == window["text_sum"].shape == (len(program.tasks),)


@of_kind("multitask")
def test_stage_is_traced(path):
    settings = load(path)
    config = from_dict(settings.model)
    streams = stream_settings(settings.data)
    program = Program(settings, config, tuple(streams), make_mesh())
    frozen = program.abstract_frozen(latent_space.shapes(config.space))
    for name, stream in streams.items():
        shapes = possible_shapes(name, stream, config.space)
        assert len(shapes) <= 10
        largest = max(shapes, key=lambda shape: shape.length)
        check(program, abstract_batch(largest), frozen, stream.heads)


@of_kind("emoji")
def test_emoji_experiment_is_traced(path):
    settings = load(path)
    config = from_dict(settings.model)
    program = Program(settings, config, ("t2i", "understand"), make_mesh())
    rows = settings.data.generation_rows + settings.data.understanding_rows
    length, latent = settings.data.length, config.space.latent_shape(1, 64, 64)
    shapes = {
        "tokens": ((rows, length), jnp.int32),
        "labels": ((rows, length), jnp.int32),
        "spans": ((rows, 1, 2), jnp.int32),
        "is_target": ((rows, 1), jnp.bool_),
        "latents": ((rows, 1, *latent), jnp.float32),
        "stream": ((rows,), jnp.int32),
    }
    batch = {name: jax.ShapeDtypeStruct(*spec) for name, spec in shapes.items()}
    frozen = program.abstract_frozen(None)
    check(
        program,
        batch,
        frozen,
        Heads(settings.data.generation_rows, settings.data.understanding_rows),
    )


@of_kind("vae")
def test_vae_experiment_is_traced(path):
    settings = load(path)
    sizes = {name: getattr(settings, name) for name in ("encoder_width", "decoder_width", "blocks")}
    config = dataclasses.replace(from_dict({"preset": settings.preset}).vae, **sizes)
    params = jax.eval_shape(lambda: vae.init(config, jax.random.key(0), image_only=True))
    optimizer.build(settings.optimizer, params, settings.steps)
    side = settings.images.size
    pixels = jax.ShapeDtypeStruct((settings.batch, side, side, 3), jnp.float32)

    def loss(params, pixels):
        return vae_trainer.vae_loss(settings, config, params, pixels, jax.random.key(0))

    (value, _), gradient = jax.eval_shape(jax.value_and_grad(loss, has_aux=True), params, pixels)
    assert value.shape == ()
    assert jax.tree.map(np.shape, gradient) == jax.tree.map(np.shape, params)


@of_kind("encoder")
def test_encoder_experiment_is_of_the_hard_worlds_model(path):
    """Its encoder, VAE and scenes are those of experiments/emoji/hard.py, which can start from it."""
    settings, hard = load(path), load(path.parents[2] / "emoji" / "hard.py")
    methods = {"contrastive": "contrastive", "masked": "masked"}
    assert (settings.method, settings.export) == (methods[path.stem], "encoder.safetensors")
    assert (settings.model, settings.vae, settings.data) == (hard.model, hard.vae, hard.data)
    config = from_dict(settings.model)
    module = nnx.eval_shape(lambda: encoder_trainer.make_module(settings, config))
    params = split(module)[1]
    shapes = jax.tree.map(np.shape, params["representation"])
    assert shapes == jax.tree.map(np.shape, tuna.shapes(config)["representation"])
    optimizer.build(settings.optimizer, params, settings.steps)


@pytest.mark.parametrize("size", ["1p5b", "7b"])
def test_stages_follow_one_another(size):
    """As in the paper: stage 1 freezes the LLM; the last learning rate is 2e-5; the 7B has no video."""
    first, second, third = (
        load(path) for path in FILES if re.match(f"tuna_{size}_stage", path.stem)
    )
    assert (first.optimizer.frozen, second.optimizer.frozen, third.optimizer.frozen) == (
        ("language",),
        (),
        (),
    )
    assert second.init_from.endswith(f"tuna_{size}_stage1")
    assert third.init_from.endswith(f"tuna_{size}_stage2")
    assert (second.optimizer.warmup, third.optimizer.learning_rate) == (2000, 2e-5)
    assert all((s.flow_weight, s.text_weight) == (1.0, 0.2) for s in (first, second, third))
    tasks = [
        {s.task for s in stream_settings(stage.data).values()} for stage in (first, second, third)
    ]
    assert tasks[0] == {"t2i", "understand"}
    assert tasks[1] >= {"t2i", "understand", "edit", "chat"}
    video = {"t2v", "video_understand"}
    assert [bool(stage & video) for stage in tasks] == [False, size == "1p5b", size == "1p5b"]


@pytest.mark.parametrize(("size", "remat"), [("1p5b", "full"), ("7b", "dots_attention")])
def test_stages_have_settings_for_a_pod(size, remat):
    """The text loss is computed in chunks that are much shorter than a sequence."""
    for path in (path for path in FILES if path.stem.startswith(f"tuna_{size}_stage")):
        settings = load(path)
        config = from_dict(settings.model)
        assert (config.attention_backend, config.remat) == ("auto", remat)
        assert 0 < config.text_chunk <= 256
        layout = sizes(settings.mesh, 64)
        assert layout == ((1, 4, 16, 1, 1) if size == "1p5b" else (1, 2, 32, 1, 1))
