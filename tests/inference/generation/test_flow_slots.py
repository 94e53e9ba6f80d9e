"""Latents in slots: each row is that of `flow_sampler.sample`, whatever is next to it and was there before it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax.config import preset
from tuna_jax.inference import batching
from tuna_jax.inference.generation import flow_sampler, flow_slots, prefix_cache
from tuna_jax.models import tuna

CONFIG = preset("tiny")
PARAMS = jax.tree.map(
    lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape),
    tuna.init(CONFIG, jax.random.key(0)),
)
SHAPE = (1, 2, 2, CONFIG.space.latent_channels)
PROMPTS = ([1, 2, 3, 4, 5, 6], [1, 7, 8, 6], [5, 4, 3])
OPTIONS = (
    {"steps": 4, "shift": 3.0, "solver": "euler", "guidance": 3.0},
    {"steps": 2, "shift": 1.0, "solver": "heun", "guidance": 2.0},
    {"steps": 3, "shift": 3.0, "solver": "euler", "guidance": 4.0, "guidance_interval": (0.1, 0.9)},
    {"steps": 2, "shift": 3.0, "solver": "heun", "guidance": 1.0},
)
NEGATIVE = [1, 6]


def _prefix(*prompts):
    tokens = np.zeros((len(prompts), 8), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    return prefix_cache.text_prefix(tokens, np.asarray([len(p) for p in prompts], np.int32))


def _alone(config, row):
    noise = batching.noise([(5, row)], 1, SHAPE)
    positive, negative = _prefix(PROMPTS[row % 3]), _prefix(NEGATIVE)
    return flow_sampler.sample(
        config, PARAMS, positive, jnp.asarray(noise), negative=negative, **OPTIONS[row]
    )[0]


def _insert(config, slots, row, slot):
    positive, negative = _prefix(PROMPTS[row % 3]), _prefix(NEGATIVE)
    keys = batching.key_data(5, row)[None]
    return flow_slots.insert(
        config, PARAMS, slots, positive, negative, keys, np.asarray([slot], np.int32)
    )


def _evaluate(config, slots, evaluations):
    """One evaluation of some rows, (slot, evaluation, guidance) each: at most two calls, guided ones and others."""
    for guided in (True, False):
        chosen = [entry for entry in evaluations if entry[1].guided is guided]
        if chosen:
            chosen = chosen + [chosen[-1]] * (4 - len(chosen))  # The copies that fill a batch.
            slots = flow_slots.evaluate(
                config,
                PARAMS,
                slots,
                np.asarray([slot for slot, _, _ in chosen], np.int32),
                np.asarray([e.t for _, e, _ in chosen], np.float32),
                np.asarray([e.dt for _, e, _ in chosen], np.float32),
                np.asarray([e.part for _, e, _ in chosen], np.int32),
                np.asarray([g for _, _, g in chosen], np.float32),
                guided=guided,
                keys=12 if len(slots.x) == 4 else None,
            )
    return slots


@pytest.mark.parametrize("predicts_clean", [False, True])
def test_rows_that_come_and_go_are_those_of_each_alone(predicts_clean) -> None:
    flow = dataclasses.replace(CONFIG.flow, prediction="clean" if predicts_clean else "velocity")
    config = dataclasses.replace(CONFIG, flow=flow)
    plans = [flow_slots.plan(config, **options) for options in OPTIONS]
    begins = {0: 0, 1: 1, 2: 1, 3: 4}  # Row 3 takes the slot of row 0 when that has ended.
    slot_of = {0: 2, 1: 0, 2: 3, 3: 2}
    slots = flow_slots.new(config, 4, 16, SHAPE)
    done = {}
    for moment in range(12):
        for row, begin in begins.items():
            if begin == moment:
                slots = _insert(config, slots, row, slot_of[row])
        now = {row: moment - begin for row, begin in begins.items()}
        active = {row: i for row, i in now.items() if 0 <= i < len(plans[row])}
        slots = _evaluate(
            config,
            slots,
            [(slot_of[row], plans[row][i], OPTIONS[row]["guidance"]) for row, i in active.items()],
        )
        for row, i in active.items():
            if i == len(plans[row]) - 1:
                done[row] = np.asarray(slots.x[slot_of[row]])
    assert set(done) == {0, 1, 2, 3}
    for row, latents in done.items():
        np.testing.assert_allclose(latents, _alone(config, row), atol=1e-5, rtol=1e-5)


def test_nothing_of_a_slots_last_row_remains() -> None:
    slots = flow_slots.new(CONFIG, 2, 16, SHAPE)
    slots = jax.tree.map(
        lambda x: jnp.full_like(x, jnp.nan) if x.dtype == jnp.float32 else x, slots
    )
    slots = _insert(CONFIG, slots, 0, 1)
    for evaluation in flow_slots.plan(CONFIG, **OPTIONS[0]):
        slots = _evaluate(CONFIG, slots, [(1, evaluation, 3.0)])
    np.testing.assert_allclose(slots.x[1], _alone(CONFIG, 0), atol=1e-5, rtol=1e-5)


def test_the_last_evaluation_predicts_the_clean_latents() -> None:
    slots = _insert(CONFIG, flow_slots.new(CONFIG, 2, 16, SHAPE), 0, 0)
    for evaluation in flow_slots.plan(CONFIG, **OPTIONS[0]):
        slots = _evaluate(CONFIG, slots, [(0, evaluation, 3.0)])
    np.testing.assert_allclose(slots.clean[0], slots.x[0], atol=1e-5)


def test_a_plan_rejects_what_sampling_rejects() -> None:
    with pytest.raises(ValueError, match="solver"):
        flow_slots.plan(CONFIG, steps=2, shift=1.0, solver="rk4", guidance=1.0)
    with pytest.raises(ValueError, match="steps"):
        flow_slots.plan(CONFIG, steps=0, shift=1.0, solver="euler", guidance=1.0)
    with pytest.raises(ValueError, match="guidance_interval"):
        flow_slots.plan(
            CONFIG, steps=1, shift=1.0, solver="euler", guidance=2.0, guidance_interval=(0.5, 0.1)
        )
