"""Rows of several tasks in one batch: layouts through the step, and which latents the loss depends on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax import sequence
from tuna_jax.config import preset
from tuna_jax.models import tuna
from tuna_jax.sequence import Grid, Special, Text, Visual
from tuna_jax.training import state, step
from tuna_jax.training.optimizer import OptimizerSettings, build

CONFIG = preset("tiny")
SPECIAL = Special(bos=1, eos=2, boi=3, eoi=4, image_pad=5, pad=0)
PICTURE, CLIP = Grid(1, 2, 2), Grid(3, 2, 2)
# The zeros of AdaLN-Zero would hide dependencies.
PARAMS = jax.tree.map(
    lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape),
    tuna.init(CONFIG, jax.random.key(0)),
)
INTERLEAVED = [
    Text((1, 9, 3), learn=True),
    Visual(PICTURE),
    Text((4, 10), learn=True),
    Text((3,)),
    Visual(PICTURE),
    Text((4, 3), learn=True),
    Visual(PICTURE, target=True),
    Text((4,)),
]
PICTURES = [
    sequence.editing(SPECIAL, [7, 8], PICTURE, sources=2),
    sequence.text_to_image(SPECIAL, [9], PICTURE),
    sequence.build(INTERLEAVED, SPECIAL),
    sequence.understanding(SPECIAL, [7], [8, 9], PICTURE),
]
CLIPS = [
    sequence.image_to_video(SPECIAL, [7, 8], CLIP),
    sequence.text_to_image(SPECIAL, [9], CLIP),
    sequence.understanding(SPECIAL, [7], [8, 9], CLIP),
    sequence.image_to_video(SPECIAL, [], CLIP),
]
BATCHES = {"pictures": (PICTURES, 3, PICTURE), "clips": (CLIPS, 2, CLIP)}


def batch_of(name):
    rows, slots, grid = BATCHES[name]
    batch = sequence.stack(rows, 40, slots, SPECIAL)
    del batch["lengths"]
    shape = (len(rows), slots, grid.frames, grid.height, grid.width, CONFIG.space.latent_channels)
    latents = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    batch |= {"latents": latents, "stream": np.arange(len(rows), dtype=np.int32)}
    return jax.tree.map(jnp.asarray, batch)


@functools.cache
def gradients(name):
    """The loss's parts by row, and its gradient in the latents."""
    batch = batch_of(name)
    noise = jax.random.normal(jax.random.key(1), batch["latents"].shape)
    t = jnp.full(batch["is_target"].shape, 0.3)

    def loss(latents):
        return tuna.loss(CONFIG, PARAMS, {**batch, "latents": latents}, noise, t)

    (_, rows), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(batch["latents"])
    return batch, {key: np.asarray(value) for key, value in rows.items()}, np.asarray(grads)


@pytest.mark.parametrize("name", BATCHES)
def test_the_loss_covers_targets_and_learned_text(name):
    batch, rows, _ = gradients(name)
    size = batch["latents"][0, 0].size
    np.testing.assert_array_equal(rows["flow_count"], batch["is_target"].sum(1) * size)
    learned = (batch["labels"][:, 1:] != sequence.IGNORE).sum(1)
    np.testing.assert_array_equal(rows["text_count"], learned)
    expected = {"pictures": ([1, 1, 1, 0], [0, 0, 6, 3]), "clips": ([1, 1, 0, 1], [0, 0, 3, 0])}
    assert batch["is_target"].sum(1).tolist() == expected[name][0]
    assert learned.tolist() == expected[name][1]
    assert all(np.isfinite(rows[key]).all() for key in ("loss", "flow_sum", "text_sum"))


@pytest.mark.parametrize("name", BATCHES)
def test_the_gradient_reaches_every_used_latent_and_no_other(name):
    """A slot has as many latent frames as its span has; what is behind the given first frame is in no token."""
    _, _, grads = gradients(name)
    reached = np.abs(grads).sum((3, 4, 5)) > 0  # [row, slot, frame]
    frames = {
        "pictures": [[1, 1, 1], [1, 0, 0], [1, 1, 1], [1, 0, 0]],
        "clips": [[1, 3], [3, 0], [3, 0], [1, 3]],
    }
    used = np.arange(reached.shape[2]) < np.asarray(frames[name])[..., None]
    np.testing.assert_array_equal(reached, used)


def test_the_step_trains_all_kinds_of_rows():
    settings = OptimizerSettings(learning_rate=0.01, warmup=0, weight_decay=0.0, ema=0.0)
    optimizer = build(settings, jax.eval_shape(lambda: PARAMS), 100)
    start = state.initial(
        lambda key: PARAMS, optimizer, step.empty_window(4), seed=3, average=False
    )
    run = jax.jit(
        step.make_step(
            lambda params, batch, noise, t, heads: tuna.loss(CONFIG, params, batch, noise, t),
            optimizer,
            lambda key, shape: jax.random.uniform(key, shape),
            ema=0.0,
            log_every=10,
            tasks=4,
        )
    )
    for name in BATCHES:
        after, window = run(start, batch_of(name))
        assert int(after.skipped) == 0
        line = step.summarize(window, ("a", "b", "c", "d"))
        assert all(np.isfinite(value) for value in line.values())
        named = {key.split("/")[1] for key in line if key.startswith("flow_loss/")}
        assert named == {"pictures": set("abc"), "clips": set("abd")}[name]
