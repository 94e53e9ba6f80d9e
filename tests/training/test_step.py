"""The training step: skipped updates, averages, randomness, metric windows, and gradients in parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax.parallel.mesh import make_mesh
from tuna_jax.parallel.param_sharding import replicated
from tuna_jax.training import state, step
from tuna_jax.training.optimizer import OptimizerSettings, build

TASKS = ("t2i", "understand")


def fake_loss(params, batch, noise, t, heads):
    """A linear model of the latents plus a text term; row sums as `models.tuna.loss` reports them."""
    error = (
        params["weight"]["kernel"][0, 0] * batch["latents"]
        + t[:, :, None, None, None, None]
        - noise
    )
    rows = jnp.square(error).sum((1, 2, 3, 4, 5))
    text = (params["weight"]["kernel"][1, 0] - batch["tokens"]).astype(jnp.float32) ** 2
    is_flow = batch["is_target"][:, 0].astype(jnp.float32)
    count = jnp.float32(batch["latents"][0].size)
    value = (rows * is_flow).mean() + text.mean()
    return value, {
        "flow_sum": rows * is_flow,
        "flow_count": count * is_flow,
        "text_sum": text.sum(1) * (1 - is_flow),
        "text_count": text.shape[1] * (1 - is_flow),
    }


def batch(seed=0, rows=4, bad=False):
    random = np.random.default_rng(seed)
    latents = random.standard_normal((rows, 1, 1, 2, 2, 3)).astype(np.float32)
    if bad:
        latents[0, 0, 0, 0, 0, 0] = np.nan
    return {
        "tokens": random.integers(0, 5, (rows, 6)).astype(np.int32),
        "latents": latents,
        "is_target": np.array([[True], [True], [False], [False]]),
        "stream": np.array([0, 0, 1, 1], np.int32),
    }


def init_params(key):
    return {"weight": {"kernel": jax.random.normal(key, (2, 1))}}


@pytest.fixture
def runner():
    settings = OptimizerSettings(learning_rate=0.1, warmup=0, weight_decay=0.0, ema=0.9)
    optimizer = build(settings, jax.eval_shape(init_params, jax.random.key(0)), 100)
    start = state.initial(init_params, optimizer, step.empty_window(2), seed=3, average=True)
    make = functools.partial(
        step.make_step,
        fake_loss,
        optimizer,
        lambda key, shape: jax.random.uniform(key, shape),
        ema=0.9,
        tasks=2,
    )
    return start, make


def equal(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_a_nonfinite_gradient_is_skipped_and_counted(runner):
    start, make = runner
    run = jax.jit(make(log_every=10))
    after, window = run(start, batch(bad=True))
    assert equal(
        (after.params, after.ema, after.optimizer), (start.params, start.ema, start.optimizer)
    )
    assert int(after.skipped) == 1 and int(after.step) == 1
    assert float(window["steps"]) == 0.0, "a skipped step does not count in means"
    good, window = run(after, batch())
    assert not equal(good.params, start.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((good.params, good.ema, window)))
    assert int(good.skipped) == 1


def test_consecutive_skipped_updates_are_counted(runner):
    start, make = runner
    run = jax.jit(make(log_every=10))
    current, counted = start, []
    for bad in (True, True, False, True):
        current, window = run(current, batch(bad=bad))
        counted.append(int(current.skipped_in_row))
        assert float(window["skipped_in_row"]) == counted[-1]
    assert counted == [1, 2, 0, 1] and int(current.skipped) == 3


def test_a_finite_step_changes_parameters_average_and_moments(runner):
    start, make = runner
    after, _ = jax.jit(make(log_every=10))(start, batch())
    assert int(after.skipped) == 0
    for name in ("params", "ema", "optimizer"):
        assert not equal(getattr(after, name), getattr(start, name)), name


def test_average_follows_the_decay(runner):
    start, make = runner
    after, _ = jax.jit(make(log_every=10))(start, batch())
    decay = 1 / 10  # (1 + 0) / (10 + 0), below the setting
    expected = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, start.ema, after.params)
    np.testing.assert_allclose(
        expected["weight"]["kernel"], after.ema["weight"]["kernel"], rtol=1e-6
    )


def test_random_numbers_depend_on_key_and_step(runner):
    start, make = runner
    run = jax.jit(make(log_every=10))
    _, first = run(start, batch())
    _, again = run(start, batch())
    _, later = run(start._replace(step=jnp.int32(7)), batch())
    _, other = run(start._replace(key=start.key + 1), batch())
    assert float(first["loss"]) == float(again["loss"])
    assert len({float(first["loss"]), float(later["loss"]), float(other["loss"])}) == 3


def test_metric_sums_restart_at_log_lines(runner):
    start, make = runner
    each, every_two = jax.jit(make(log_every=1)), jax.jit(make(log_every=2))
    single, lines, current = start, [], start
    windows = []
    for number in range(4):
        single, window = each(single, batch(number))
        lines.append(step.summarize(window, TASKS))
        current, window = every_two(current, batch(number))
        windows.append(step.summarize(window, TASKS))
    assert windows[1]["loss"] == pytest.approx((lines[0]["loss"] + lines[1]["loss"]) / 2)
    assert windows[3]["loss"] == pytest.approx((lines[2]["loss"] + lines[3]["loss"]) / 2)


def test_a_stream_without_targets_has_no_loss(runner):
    start, make = runner
    _, window = jax.jit(make(log_every=1))(start, batch())
    line = step.summarize(window, TASKS)
    assert line["flow_loss"] == line["flow_loss/t2i"] > 0
    assert line["text_loss"] == line["text_loss/understand"] > 0
    assert "flow_loss/understand" not in line and "text_loss/t2i" not in line


def counts_of(batch):
    is_flow = batch["is_target"][:, 0].astype(jnp.float32)
    return is_flow.sum() * batch["latents"][0].size, jnp.float32(batch["tokens"].size)


def counted_loss(params, batch, noise, t, heads, counts=None):
    """`fake_loss` with means over targets, whose number differs between parts of a batch."""
    _, rows = fake_loss(params, batch, noise, t, heads)
    flow_count, text_count = counts or counts_of(batch)
    text = jnp.square(params["weight"]["kernel"][1, 0] - batch["tokens"]).sum()
    return rows["flow_sum"].sum() / flow_count + text / text_count, rows


def test_gradients_in_parts_equal_those_of_the_batch(runner):
    """Three of four rows have a flow target, so a mean of the parts' means would differ."""
    start, _ = runner
    settings = OptimizerSettings(learning_rate=0.1, warmup=0, weight_decay=0.0, ema=0.9)
    update = build(settings, jax.eval_shape(init_params, jax.random.key(0)), 100)
    inputs = batch() | {"is_target": np.array([[True], [True], [True], [False]])}

    def after(parts):
        run = step.make_step(
            counted_loss,
            update,
            lambda key, shape: jax.random.uniform(key, shape),
            ema=0.9,
            log_every=1,
            tasks=2,
            accumulate=parts,
            counts=counts_of,
        )
        return jax.jit(run)(start, inputs)

    whole, halves = after(1), after(2)
    assert float(whole[1]["loss"]) > 0 and float(whole[1]["gradient_norm"]) > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, halves)


def test_the_compiled_step_donates_its_state_and_keeps_shardings(runner):
    start, make = runner
    mesh = make_mesh(devices=jax.devices()[:1])
    shardings = jax.tree.map(lambda _: replicated(mesh), start)
    start = jax.device_put(start, shardings)
    run = step.compile_step(make(log_every=1), shardings, mesh)
    after, _ = run(start, batch(), None, step.NO_LIMITS)
    assert start.params["weight"]["kernel"].is_deleted()
    assert after.params["weight"]["kernel"].sharding == replicated(mesh)
