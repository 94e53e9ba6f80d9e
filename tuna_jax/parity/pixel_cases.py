"""Computes the golden cases of the whole models on pixels, Tuna-R and Tuna-2 (model.md sections 12 and 13), and lists
all cases with their functions; `pixel_component_cases.py` has those of single components.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax import flow
from tuna_jax.config import TunaConfig
from tuna_jax.inference.generation import flow_sampler, prefix_cache
from tuna_jax.models import tuna
from tuna_jax.models.attention import sequence_layout
from tuna_jax.models.text_loss import text_loss
from tuna_jax.parity import component_cases, model_cases, pixel_component_cases
from tuna_jax.parity.component_cases import Computed
from tuna_jax.parity.golden_set import Case, Comparison, GoldenSet
from tuna_jax.parity.pixel_component_cases import images_of, noise_scale, patches, slots
from tuna_jax.training import augment
from tuna_jax.training.augment import InputNoise

# ---- whole model ---------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def _outputs(
    config: TunaConfig,
    params: Any,
    tokens: jax.Array,
    spans: jax.Array,
    noisy: jax.Array,
    t: jax.Array,
    hidden: jax.Array | None,
) -> dict[str, jax.Array]:
    """Outputs of a forward pass; cases of equal shapes share one compiled program."""
    result = tuna.forward(config, params, tokens, spans, noisy, t, None, hidden)
    model = tuna.bind(config, params)
    layout = sequence_layout(spans, tokens.shape[1])
    assert result.prediction is not None
    clean = tuna.span_predictions(config, result.prediction, spans, noisy.shape[2:])
    velocity = flow.velocity_from_clean(clean, noisy, t, config.flow.min_remaining)
    flat = (-1, *noisy.shape[2:])
    return {
        "input_embeds": model.embed(tokens, layout, noisy, model.time_embedding(t), hidden),
        "logits": tuna.logits(config, params, result.hidden),
        "last_hidden": result.hidden,
        "x_pred": clean.reshape(flat),
        "v_pred": velocity.reshape(flat),
    }


def _forward(
    golden: GoldenSet,
    x: Mapping[str, np.ndarray],
    noisy: jax.Array,
    t: jax.Array,
    hidden: jax.Array | None = None,
) -> dict[str, Any]:
    tokens, spans = jnp.asarray(x["text_tokens"]), jnp.asarray(x["modality_positions"])
    out = _outputs(golden.config, golden.params, tokens, spans, noisy, t, hidden)
    return out | {name: images_of(golden, out[name]) for name in ("x_pred", "v_pred")}


def clear_programs() -> None:
    """Drops the compiled programs of all cases, for code that changes the functions that they were traced from."""
    _outputs.clear_cache()  # pyright: ignore[reportAttributeAccessIssue]
    model_cases.clear_programs()


def _full(golden: GoldenSet, case: Case) -> tuple[dict[str, Any], dict[str, jax.Array], jax.Array]:
    """Outputs, losses and gradients of a training step, its batch, and the times."""
    x = case.tensors
    rows = len(x["text_tokens"])
    clean, noisy = (
        slots(golden, x["x1"], rows),
        slots(golden, x["xt"], rows),
    )
    t = jnp.asarray(x["t"]).reshape(rows, -1)
    if "noise" in x:
        noise = slots(golden, x["noise"], rows)
    else:
        wide = t[:, :, None, None, None, None]
        noise = (noisy - wide * clean) / jnp.maximum(1.0 - wide, 1e-6) / noise_scale(golden)
    batch = model_cases.batch_of(x, clean)
    if "mask" in x:
        batch["hidden_tokens"] = jnp.asarray(x["mask"]).reshape(rows, clean.shape[1], -1) > 0
    losses, grads = model_cases.losses_and_gradients_of(golden, batch, noise, t)
    computed = _forward(golden, x, noisy, t, batch.get("hidden_tokens")) | losses
    out = model_cases.in_case(case, computed)
    out |= model_cases.gradients_of(golden, case, grads)
    return out, batch | {"noise": noise}, t


def full_t2i_loss(golden: GoldenSet, case: Case) -> Computed:
    """A training step: forward pass, losses, and gradients of all parameters."""
    x = case.tensors
    out, batch, t = _full(golden, case)
    noisy = slots(golden, x["xt"], len(t))
    path = flow.interpolate(batch["latents"], noise_scale(golden) * batch["noise"], t)
    out["xt (from x1 and noise)"] = Comparison(path, noisy)
    given = jnp.asarray(x["last_hidden"])
    out |= model_cases.parts(golden, case, batch, noisy, t, given)
    ignored = {**batch, "labels": jnp.asarray(x["text_labels_official"])}
    noise = ignored.pop("noise")
    with_ignored, _ = model_cases.losses_and_gradients_of(golden, ignored, noise, t)  # As in _full.
    reference = case.scalar("loss_ntp_official_labels")
    out["loss_ntp_official_labels"] = Comparison(with_ignored["loss_ntp"], reference)
    return out


def full_t2i_masked(golden: GoldenSet, case: Case) -> Computed:
    """A training step with hidden tokens, and their number from the uniform draws."""
    x = case.tensors
    out, _, _ = _full(golden, case)
    counts = _hidden_counts(golden, x)
    out["masked_tokens"] = Comparison(counts, np.asarray(case.scalar("masked_tokens")))
    return out


def _hidden_counts(golden: GoldenSet, x: Mapping[str, np.ndarray]) -> jax.Array:
    model = golden.info["config"]["tuna_model"]
    low, high = model["masked_image_ratio_min"], model["masked_image_ratio"]
    share = low + (high - low) * jnp.asarray(x["mask_uniform"])
    return augment.hidden_counts(share, x["mask"].shape[-1])


def full_edit(golden: GoldenSet, case: Case) -> Computed:
    """An edit's training step, and one from all random draws, whose sources are clean."""
    x = case.tensors
    out, batch, t = _full(golden, case)
    normal = golden.info["config"]["noise_scheduler"]
    drawn = flow.training_time(normal["P_mean"] + normal["P_std"] * jnp.asarray(x["wrap_u"]))
    drawn = drawn.reshape(t.shape)
    noise = slots(golden, x["wrap_noise"], len(t))
    del batch["noise"]
    losses, _ = model_cases.losses_and_gradients_of(golden, batch, noise, drawn)  # As in _full.
    out["wrap_t"] = jnp.where(batch["is_target"], drawn, 1.0).reshape(-1)
    for name in ("flow", "ntp"):
        out[f"wrap_loss_{name}"] = losses[f"loss_{name}"]
    out["wrap_loss"] = losses["loss_total"]
    return out


def full_t2i_wrapper(golden: GoldenSet, case: Case) -> Computed:
    """A training step from RGB with all random draws."""
    x = case.tensors
    rows = len(x["text_tokens"])
    clean, noise = (slots(golden, image, rows) for image in (x["images"][:, :, None], x["noise"]))
    normal = golden.info["config"]["noise_scheduler"]
    t = flow.training_time(normal["P_mean"] + normal["P_std"] * jnp.asarray(x["u"]))
    slot_t = t.reshape(rows, -1)
    noisy = flow.interpolate(clean, noise_scale(golden) * noise, slot_t)
    batch = model_cases.batch_of(x, clean)
    out: dict[str, Any] = {}
    if "mask" in x:
        batch["hidden_tokens"] = jnp.asarray(x["mask"]).reshape(rows, 1, -1) > 0
        given = x["mask"].reshape(rows, -1).sum(-1)
        out["masked_tokens"] = Comparison(_hidden_counts(golden, x), given)
    losses = model_cases.losses_of(golden, batch, noise, slot_t)
    computed = _forward(golden, x, noisy, slot_t, batch.get("hidden_tokens"))
    return out | {
        "t": t,
        "xt": images_of(golden, noisy[:, 0]),
        "logits": computed["logits"],
        "loss": losses["loss_total"],
        "loss_flow": losses["loss_flow"],
        "loss_ntp": losses["loss_ntp"],
    }


def full_mmu(golden: GoldenSet, case: Case) -> Computed:
    """Understanding: the text loss, clean and with noise on the images, and greedy decoding with the cache."""
    x = case.tensors
    rows = len(x["text_tokens"])
    clean = slots(golden, x["images"], rows)
    t = jnp.asarray(x["t"]).reshape(rows, -1)
    batch = model_cases.batch_of(x, clean) | {"is_target": jnp.zeros(clean.shape[:2], bool)}
    losses = model_cases.losses_of(golden, batch, jnp.zeros_like(clean), t)
    computed = _forward(golden, x, clean, t) | {"loss_ntp": losses["loss_ntp"]}
    out = model_cases.in_case(case, computed)
    out["loss_flow (no flow targets)"] = Comparison(losses["loss_flow"], 0.0)

    model = golden.info["config"]["tuna_model"]
    settings = InputNoise(probability=model["mmu_noise_prob"], level=model["mmu_noise_level"])
    times = augment.input_times(
        jnp.asarray(x["noise_coin"]), jnp.asarray(x["noise_level"]), settings
    )
    slot_t, noise = (
        times.reshape(rows, -1),
        slots(golden, x["noise_noise"], rows),
    )
    losses = model_cases.losses_of(golden, batch | {"input_t": slot_t}, noise, t)
    noisy = flow.interpolate(clean, noise_scale(golden) * noise, slot_t)
    out["noise_t"] = times
    out["noise_xt"] = images_of(golden, noisy.reshape(-1, *noisy.shape[2:]))
    out["noise_logits"] = _forward(golden, x, noisy, slot_t)["logits"]
    out["noise_loss_ntp"] = losses["loss_ntp"]
    images = slots(golden, x["gen_images"], len(x["gen_text_tokens"]))
    return out | model_cases.decoded(golden, case, images)


def text_only(golden: GoldenSet, case: Case) -> Computed:
    """Text without images."""
    x = case.tensors
    computed = model_cases.forward(golden, x, None, None)
    sums, counts = text_loss(computed["logits"], jnp.asarray(x["text_labels"]))
    loss = sums.sum() / counts.sum()
    weight = golden.info["config"]["tuna_model"]["ntp_coeff"]
    return {
        "logits": computed["logits"],
        "loss_ntp": loss,
        "loss_flow": 0.0 * loss,  # Without images there is no flow term.
        "wrapper_loss": Comparison(weight * loss, case.scalar("wrapper_loss")),
    }


# ---- sampling ------------------------------------------------------------------------------------


def generate(golden: GoldenSet, case: Case) -> Computed:
    """Guided sampling on the prefix cache, from images or edits, with Euler's or Heun's method."""
    config, params, x = golden.config, golden.params, case.tensors
    source = x.get("source_images")
    clean = None if source is None else patches(golden, source)
    positive, negative = model_cases.prefixes(x, clean)
    noise = patches(golden, x["noise"])
    sampler = case.meta["sampler"]
    steps, solver = sampler["num_steps"], sampler["sampling_method"]
    low, high = sampler["cfg_interval"] or flow.EVERYWHERE
    interval = (float(low), float(high))
    states = flow_sampler.sample(
        config,
        params,
        positive,
        noise,
        negative=negative,
        guidance=float(sampler["guidance_scale"]),
        guidance_interval=interval,
        steps=steps,
        shift=1.0,
        solver=solver,
        trajectory=True,
    )
    final = images_of(golden, states[-1])
    clamped = jnp.clip(final, -1, 1)
    out: dict[str, Any] = {
        "z": images_of(golden, config.flow.noise_scale * noise),
        "pixels_final": final,
        "decoded_clamped": clamped,
    }
    for name, match in component_cases.numbers(r"pixels_after_(\d+)_updates", x):
        out[name] = images_of(golden, states[int(match[1]) - 1])
    for name in ("uint8", "uint8_clamped"):
        if name in x:
            out[name] = flow_sampler.to_uint8(jnp.moveaxis(final[:, :, 0], 1, -1))
    calls = _calls(steps, solver, interval, float(sampler["guidance_scale"]))
    first = float(calls["call_guidance"][0])
    return out | calls | _predictions_at_0(golden, x, (positive, negative), noise, first)


def _predictions_at_0(
    golden: GoldenSet,
    x: Mapping[str, np.ndarray],
    branches: tuple[prefix_cache.Prefix, prefix_cache.Prefix],
    noise: jax.Array,
    guidance: float,
) -> dict[str, Any]:
    config = golden.config
    both = prefix_cache.join(*branches)
    capacity = both.tokens.shape[1] + 1 + noise.shape[2] * noise.shape[3]

    @jax.jit
    def predict(params: Any, both: prefix_cache.Prefix) -> jax.Array:
        cache, _ = prefix_cache.prefill(config, params, both, capacity, with_flow_head=True)
        state = config.flow.noise_scale * noise
        return prefix_cache.span_prediction(
            config, params, cache, both.lengths, state, jnp.zeros(())
        )

    predicted = predict(golden.params, both)
    half = len(noise)
    out = {}
    if "x_pred_t0_branches" in x:
        out["x_pred_t0_branches"] = images_of(golden, predicted)
    if "x_pred_t0" in x:
        out["x_pred_t0"] = images_of(
            golden, flow.guided(predicted[:half], predicted[half:], guidance)
        )
    return out


def _calls(
    steps: int, solver: str, interval: tuple[float, float], guidance: float
) -> dict[str, Any]:
    """Time and guidance of every evaluation of the model, from our solvers on a field that is zero."""
    bounds = flow.guidance_bounds(interval)
    calls: list[tuple[float, float]] = []

    def velocity(z: jax.Array, t: jax.Array) -> jax.Array:
        guides = bounds is None or flow.guides(t, jnp.asarray(bounds), ends=False)
        g = jnp.where(guides, guidance, 1.0)
        jax.debug.callback(lambda t, g: calls.append((float(t), float(g))), t, g, ordered=True)
        return 0.0 * z

    grid = jnp.asarray(flow.time_grid(steps, 1.0))
    flow.integrate(velocity, jnp.zeros(()), grid, solver, euler_at_end=True)
    jax.effects_barrier()
    return {
        "call_times": np.asarray([t for t, _ in calls], np.float32),
        "call_guidance": np.asarray([g for _, g in calls], np.float32),
    }


CASES: dict[str, Callable[[GoldenSet, Case], Computed]] = {
    "components": pixel_component_cases.components,
    "siglip": pixel_component_cases.siglip,
    "transport": pixel_component_cases.transport,
    "full_t2i_loss": full_t2i_loss,
    "full_t2i_masked": full_t2i_masked,
    "full_t2i_wrapper": full_t2i_wrapper,
    "full_mmu": full_mmu,
    "full_edit": full_edit,
    "text_only": text_only,
    "t2i_generate": generate,
    "t2i_generate_heun": generate,
    "t2i_generate_edit": generate,
}
