"""Properties of the whole network that golden numbers do not show."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax.config import preset
from tuna_jax.models import attention, tuna

CONFIG = preset("tiny")
PARAMS = jax.tree.map(
    # With AdaLN-Zero the velocities would not depend on the layers.
    lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape),
    tuna.init(CONFIG, jax.random.key(0)),
)
SPANS = jnp.asarray([[[3, 5], [-1, -1]], [[2, 5], [9, 5]]], jnp.int32)


def _batch() -> dict[str, jax.Array]:
    key = jax.random.key(1)
    tokens = jax.random.randint(key, (2, 16), 0, 500)
    return {
        "tokens": tokens,
        "labels": tokens.at[:, :13].set(-100),
        "spans": SPANS,
        "is_target": jnp.asarray([[True, False], [False, True]]),
        "latents": jax.random.normal(key, (2, 2, 1, 2, 2, 8)),
    }


forward = jax.jit(functools.partial(tuna.forward, CONFIG))
loss = jax.jit(functools.partial(tuna.loss, CONFIG))


def _loss(batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    noise = jax.random.normal(jax.random.key(2), batch["latents"].shape)
    t = jnp.full(batch["spans"].shape[:2], 0.4)
    return loss(PARAMS, batch, noise, t)


def _three_rows() -> dict[str, jax.Array]:
    """A row with text targets, one with an image target, and one with neither."""
    batch = {name: jnp.concatenate([x, x[:1]]) for name, x in _batch().items()}
    batch["is_target"] = jnp.asarray([[False, False], [False, True], [False, False]])
    batch["labels"] = batch["labels"].at[1:].set(-100)
    return batch


@functools.partial(jax.jit, static_argnames=("config", "rows"))
def _value_and_gradients(batch, *, config=CONFIG, rows: tuple = ()):
    """The loss, its terms, and its gradients: one program for all tests with batches of equal shapes."""
    noise = jax.random.normal(jax.random.key(2), batch["latents"].shape)
    t = jnp.full(batch["spans"].shape[:2], 0.4)

    def objective(params):
        return tuna.loss(config, params, batch, noise, t, **dict(rows))

    return jax.value_and_grad(objective, has_aux=True)(PARAMS)


def _run(batch, config=CONFIG, **rows: int):
    return _value_and_gradients(batch, config=config, rows=tuple(rows.items()))


def test_an_image_token_sees_a_later_one_and_text_does_not() -> None:
    layout = attention.sequence_layout(SPANS, 16)
    visible = jnp.arange(16) < layout.visible_end[:, :, None]
    assert bool(visible[0, 4, 7]) and not bool(visible[0, 4, 8])
    assert not bool(visible[0, 2, 3]) and not bool(visible[0, 9, 10])
    assert bool(visible[1, 9, 13]) and not bool(visible[1, 6, 9])


def test_an_unused_slot_changes_nothing() -> None:
    batch = _batch()
    t = jnp.full((2, 2), 0.4)
    out = forward(PARAMS, batch["tokens"], SPANS, batch["latents"], t)
    other = batch["latents"].at[0, 1].set(7.0)
    again = forward(PARAMS, batch["tokens"], SPANS, other, t.at[0, 1].set(0.9))
    np.testing.assert_array_equal(out.prediction, again.prediction)
    np.testing.assert_array_equal(out.hidden, again.hidden)


def test_padding_changes_no_real_token() -> None:
    batch = _batch()
    t = jnp.full((2, 2), 0.4)
    out = forward(PARAMS, batch["tokens"], SPANS, batch["latents"], t)
    longer = jnp.pad(batch["tokens"], ((0, 0), (0, 5)), constant_values=9)
    again = forward(PARAMS, longer, SPANS, batch["latents"], t)
    np.testing.assert_allclose(out.prediction, again.prediction[:, :16], atol=1e-5)


def test_the_source_of_an_edit_and_an_unused_slot_add_no_flow_loss() -> None:
    batch = _batch()
    _, terms = _loss(batch)
    assert terms["flow_count"].tolist() == [32.0, 32.0]
    _, clean = _loss(batch | {"is_target": jnp.zeros((2, 2), bool)})
    assert float(clean["flow_loss"]) == 0.0
    assert float(clean["loss"]) == pytest.approx(0.2 * float(clean["text_loss"]), rel=1e-6)


def test_a_batch_without_text_targets_has_a_text_loss_of_exactly_zero() -> None:
    batch = _batch()
    total, terms = _loss(batch | {"labels": jnp.full((2, 16), -100)})
    assert float(terms["text_loss"]) == 0.0
    assert float(total) == float(terms["flow_loss"])


def test_heads_on_the_rows_that_have_a_target_change_no_loss_and_no_gradient() -> None:
    """Each head may run on one row."""
    batch = _three_rows()
    everywhere, few = _run(batch), _run(batch, flow_rows=1, text_rows=1)
    assert everywhere[0][1]["flow_sum"].tolist()[0] == 0.0 and everywhere[0][1]["text_sum"][0] > 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), everywhere, few
    )


def test_a_head_without_rows_is_left_out_and_changes_nothing_else() -> None:
    batch = _three_rows()
    for absent, limit in (
        ({"is_target": jnp.zeros((3, 2), bool)}, {"flow_rows": 0}),
        ({"labels": jnp.full((3, 16), -100)}, {"text_rows": 0}),
    ):
        whole, without = _run(batch | absent), _run(batch | absent, **limit)
        assert float(whole[0][0]) > 0
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, without
        )


def test_a_fresh_head_predicts_zero() -> None:
    fresh = tuna.init(CONFIG, jax.random.key(0))
    batch = _batch()
    out = forward(fresh, batch["tokens"], SPANS, batch["latents"], jnp.full((2, 2), 0.4))
    assert float(jnp.abs(out.prediction).max()) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots", "attention", "dots_attention"])
def test_rematerialisation_changes_no_gradient(remat: str) -> None:
    batch = _three_rows()
    (_, plain), (_, saved) = _run(batch), _run(batch, dataclasses.replace(CONFIG, remat=remat))
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain)) > 1e-2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, saved)


def test_policies_that_keep_attention_compute_it_once() -> None:
    """Counted in the traced gradient: the products of weights and values are not recomputed."""
    batch = _batch()
    noise, t = jnp.ones_like(batch["latents"]), jnp.full((2, 2), 0.4)

    def products(remat: str) -> int:
        config = dataclasses.replace(CONFIG, remat=remat)
        objective = lambda params: tuna.loss(config, params, batch, noise, t)[0]
        return str(jax.make_jaxpr(jax.grad(objective))(PARAMS)).count("dot_general")

    assert products("attention") <= products("full") - 3, "one per stack of layers"
    assert products("dots_attention") <= products("dots") - 3


@functools.cache
def _chunked_text_loss(chunk: int):
    """The text loss with its gradients, and their program; 0: not in chunks."""
    config, batch = dataclasses.replace(CONFIG, text_chunk=chunk), _batch()
    noise, t = jnp.ones_like(batch["latents"]), jnp.full((2, 2), 0.4)

    def objective(params):
        return tuna.loss(config, params, batch, noise, t, flow_rows=0, text_weight=1.0)

    traced = jax.jit(jax.value_and_grad(objective, has_aux=True)).trace(PARAMS)
    return traced.lower().compile()(PARAMS), str(traced.jaxpr)


@pytest.mark.parametrize("chunk", [4, 5])
def test_text_loss_in_chunks_is_that_of_the_whole(chunk: int) -> None:
    """Also if the last chunk is not full; and the scores of a whole batch are never in memory at once."""
    (whole, all_at_once), (parts, in_chunks) = _chunked_text_loss(0), _chunked_text_loss(chunk)
    assert float(whole[0][0]) > 0 and whole[0][1]["text_count"].tolist() == [3.0, 3.0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, parts)
    assert "f32[2,16,512]" in all_at_once and "f32[2,16,512]" not in in_chunks


def test_bfloat16_is_near_float32() -> None:
    batch = _batch()
    t = jnp.full((2, 2), 0.4)
    exact = forward(PARAMS, batch["tokens"], SPANS, batch["latents"], t).prediction
    half = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    run = jax.jit(tuna.forward, static_argnums=0)
    out = run(half, PARAMS, batch["tokens"], SPANS, batch["latents"], t)
    assert out.hidden.dtype == jnp.bfloat16
    assert out.prediction.dtype == jnp.float32
    error = jnp.linalg.norm(out.prediction - exact) / jnp.linalg.norm(exact)
    assert float(error) < 0.05
