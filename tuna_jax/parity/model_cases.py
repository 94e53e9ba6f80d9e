"""Computes the golden cases of the whole model, and lists all cases with their functions.

A function is `(golden set, case) -> {tensor name: our value}`; `component_cases.py` has those of single components.
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
from tuna_jax.conversion import weight_map
from tuna_jax.inference.generation import flow_sampler, prefix_cache, text_decoder
from tuna_jax.models import rope, tuna, vae
from tuna_jax.models.attention import sequence_layout
from tuna_jax.models.text_loss import text_loss
from tuna_jax.parity import component_cases
from tuna_jax.parity.component_cases import Computed
from tuna_jax.parity.golden_set import Case, Comparison, GoldenSet


def batch_of(x: Mapping[str, np.ndarray], clean: jax.Array, name: str = "") -> dict[str, jax.Array]:
    """A training batch from a case; a slot is a target if the image mask covers its image tokens."""
    spans = x[f"{name}modality_positions"]
    masks = x[f"{name}image_masks"]
    inside = np.minimum(np.maximum(spans[:, :, 0], 0) + 1, masks.shape[1] - 1)
    target = np.take_along_axis(masks, inside, axis=1) > 0
    return {
        "tokens": jnp.asarray(x[f"{name}text_tokens"]),
        "labels": jnp.asarray(x[f"{name}text_labels"]),
        "spans": jnp.asarray(spans),
        "is_target": jnp.asarray(target & (spans[:, :, 1] > 0)),
        "latents": clean,
    }


@functools.partial(jax.jit, static_argnums=0)
def outputs(
    config: TunaConfig, params: Any, tokens: jax.Array, spans: jax.Array, noisy: Any, t: Any
) -> dict[str, Any]:
    """Outputs of a forward pass; cases of equal shapes share one compiled program."""
    result = tuna.forward(config, params, tokens, spans, noisy, t)
    model = tuna.bind(config, params)
    layout = sequence_layout(spans, tokens.shape[1])
    time = None if t is None else model.time_embedding(t)
    out = {
        "input_embeds": model.embed(tokens, layout, noisy, time),
        "logits": tuna.logits(config, params, result.hidden),
        "last_hidden": result.hidden,
    }
    if noisy is not None:
        assert result.prediction is not None
        out["v_pred_all"] = result.prediction
        velocity = tuna.span_predictions(config, result.prediction, spans, noisy.shape[2:])
        out["v_pred"] = component_cases.first(velocity.reshape(-1, *velocity.shape[2:]))
    return out


def forward(golden: GoldenSet, x: Mapping[str, np.ndarray], noisy: Any, t: Any) -> dict[str, Any]:
    """Outputs of a forward pass, by their names in the cases."""
    tokens, spans = jnp.asarray(x["text_tokens"]), jnp.asarray(x["modality_positions"])
    return outputs(golden.config, golden.params, tokens, spans, noisy, t)


def _loss(
    config: TunaConfig,
    weights: tuple[float, float],
    params: Any,
    batch: dict[str, jax.Array],
    noise: jax.Array,
    t: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    flow_weight, text_weight = weights
    return tuna.loss(
        config, params, batch, noise, t, flow_weight=flow_weight, text_weight=text_weight
    )


_losses = jax.jit(_loss, static_argnums=(0, 1))
_losses_and_gradients = jax.jit(
    jax.value_and_grad(_loss, argnums=2, has_aux=True), static_argnums=(0, 1)
)


def losses_of(
    golden: GoldenSet, batch: dict[str, jax.Array], noise: jax.Array, t: jax.Array
) -> dict[str, Any]:
    """The losses, by their names in the cases."""
    total, terms = _losses(golden.config, _weights(golden), golden.params, batch, noise, t)
    return _named(total, terms)


def losses_and_gradients_of(
    golden: GoldenSet, batch: dict[str, jax.Array], noise: jax.Array, t: jax.Array
) -> tuple[dict[str, Any], Any]:
    """The losses, by their names in the cases, and the gradients of all parameters."""
    (total, terms), grads = _losses_and_gradients(
        golden.config, _weights(golden), golden.params, batch, noise, t
    )
    return _named(total, terms), grads


def _weights(golden: GoldenSet) -> tuple[float, float]:
    weights = golden.info["config"]["tuna_model"]
    return weights["flow_coeff"], weights["ntp_coeff"]


def _named(total: jax.Array, terms: Mapping[str, jax.Array]) -> dict[str, Any]:
    return {"loss_flow": terms["flow_loss"], "loss_ntp": terms["text_loss"], "loss_total": total}


def clear_programs() -> None:
    """Drops the compiled programs of all cases, for code that changes the functions that they were traced from."""
    for program in (outputs, _losses, _losses_and_gradients):
        program.clear_cache()  # pyright: ignore[reportAttributeAccessIssue]


def in_case(case: Case, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that the case has."""
    return {name: value for name, value in values.items() if name in case.tensors}


def _path(xt: Any, ut: Any, t: Any, batch: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(clean, noise, t) of slots from noisy latents and velocities: `x_1 = x_t + (1 - t) u`, `x_0 = x_t - t u`."""
    noisy, velocity = component_cases.slots(xt, batch), component_cases.slots(ut, batch)
    times = jnp.asarray(t).reshape(batch, -1)
    wide = times[:, :, None, None, None, None]
    return noisy + (1 - wide) * velocity, noisy - wide * velocity, times


def full_t2i_loss(golden: GoldenSet, case: Case) -> Computed:
    """A training step: forward pass, losses, and gradients of all parameters."""
    x = case.tensors
    rows = len(x["text_tokens"])
    clean, noise = component_cases.slots(x["x1"], rows), component_cases.slots(x["x0"], rows)
    t = jnp.asarray(x["t"]).reshape(rows, -1)
    batch = batch_of(x, clean)
    losses, grads = losses_and_gradients_of(golden, batch, noise, t)
    noisy = flow.interpolate(clean, noise, t)
    computed = forward(golden, x, noisy, t) | losses
    computed |= parts(golden, case, batch, noisy, t, computed["last_hidden"])
    out = dict(in_case(case, computed))
    out |= gradients_of(golden, case, grads)
    ignored = batch | {"labels": jnp.asarray(x["text_labels_official"])}
    with_ignored, _ = losses_and_gradients_of(golden, ignored, noise, t)  # Its program is there.
    reference = case.scalar("loss_ntp_official_labels")
    out["loss_ntp_official_labels"] = Comparison(with_ignored["loss_ntp"], reference)
    return out


def parts(
    golden: GoldenSet,
    case: Case,
    batch: Mapping[str, jax.Array],
    noisy: jax.Array,
    t: jax.Array,
    hidden: jax.Array,
) -> dict[str, Any]:
    """The visual tokens, and the output of every block of the flow head, by their names in the cases.

    Args:
      golden, case: the case.
      batch: its training batch.
      noisy: noisy latents of the slots.
      t: their times.
      hidden: the input of the flow head.
    """

    @jax.jit
    def run(params: Any, hidden: jax.Array) -> dict[str, jax.Array]:
        model = tuna.bind(golden.config, params)
        layout = sequence_layout(batch["spans"], batch["tokens"].shape[1])
        rotation = rope.flow_head_rotation(layout, golden.config.flow_head, *noisy.shape[3:5])
        tokens = model.visual_tokens(noisy).reshape(case.tensors["image_embeds"].shape)
        values, time = {"image_embeds": tokens}, model.time_embedding(t)
        for index in range(golden.config.flow_head.layers):
            block = component_cases.layer(model.flow_head.layers, index)
            hidden, _ = block(hidden, time, rotation, layout)
            values[f"head_{index}"] = hidden
        return values

    return run(golden.params, hidden)


def gradients_of(golden: GoldenSet, case: Case, grads: Any) -> dict[str, Any]:
    """Gradients of all parameters: the arrays of the case, a norm of each, and the global norm."""
    x, out = case.tensors, {}
    zeros = jax.tree.map(jnp.zeros_like, {"vae": golden.vae_params} if golden.vae_params else {})
    state = weight_map.to_torch(golden.config, jax.tree.map(np.asarray, grads | zeros))
    for name, match in component_cases.numbers(r"grad\.(.*)", x):
        out[name] = state[match[1]]
    total = float(case.scalar("global_grad_norm"))
    for key, norm in case.meta["grad_norms"].items():
        # Gradients that are analytically zero (SigLIP key biases) are rounding noise in both.
        out[f"grad_norm.{key}"] = Comparison(np.linalg.norm(state[key]), norm, floor=1e-7 * total)
    aliases = weight_map.aliases(golden.config)
    trained = {k: v for k, v in state.items() if not k.startswith("vae.") and k not in aliases}
    ours = np.sqrt(sum(float(np.sum(np.square(v, dtype=np.float64))) for v in trained.values()))
    out["global_grad_norm"] = Comparison(ours, total)
    missing = set(trained) - set(case.meta["grad_norms"]) - set(case.meta["params_without_grad"])
    out["parameters without a golden gradient"] = Comparison(len(missing), 0)
    return out


def full_t2i_wrapper(golden: GoldenSet, case: Case) -> Computed:
    """A training step from pixels: posterior sample, training time, noisy latents, loss."""
    x, config = case.tensors, golden.config.video_vae
    rows = len(x["text_tokens"])
    mu, log_var = component_cases.encode(
        config, golden.vae_params, component_cases.last(x["images"][:, :, None])
    )
    latents = vae.sample_posterior(config, mu, log_var, component_cases.last(x["eps"]))
    t = flow.training_time(jnp.asarray(x["u"]), mu=flow.shift_mu())
    noise = component_cases.last(x["x0"])
    noisy = flow.interpolate(latents, noise, t)
    slot_t = t.reshape(rows, -1)
    batch = batch_of(x, latents[:, None])
    losses = losses_of(golden, batch, noise[:, None], slot_t)
    return {
        "latents": component_cases.first(latents),
        "t": t,
        "xt": component_cases.first(noisy),
        "ut": component_cases.first(latents - noise),
        "logits": forward(golden, x, noisy[:, None], slot_t)["logits"],
        "loss": losses["loss_total"],
        "loss_flow": losses["loss_flow"],
        "loss_ntp": losses["loss_ntp"],
    }


def full_mmu(golden: GoldenSet, case: Case) -> Computed:
    """Understanding: the text loss, and greedy decoding with the KV cache."""
    x = case.tensors
    rows = len(x["text_tokens"])
    clean = component_cases.slots(x["image_latents"], rows)
    t = jnp.asarray(x["t"]).reshape(rows, -1)
    batch = batch_of(x, clean) | {"is_target": jnp.zeros(clean.shape[:2], bool)}
    losses = losses_of(golden, batch, jnp.zeros_like(clean), t)
    out = dict(in_case(case, forward(golden, x, clean, t) | {"loss_ntp": losses["loss_ntp"]}))
    out["loss_flow (no flow targets)"] = Comparison(losses["loss_flow"], 0.0)
    images = component_cases.slots(x["gen_image_latents"], len(x["gen_text_tokens"]))
    return out | decoded(golden, case, images)


def decoded(golden: GoldenSet, case: Case, images: jax.Array) -> dict[str, Any]:
    """Greedy decoding from a prompt with clean images, `B N T h w C`, free and with an early stop."""
    x, config, params = case.tensors, golden.config, golden.params
    out: dict[str, Any] = {}
    tokens = jnp.asarray(x["gen_text_tokens"], jnp.int32)
    spans = jnp.asarray(x["gen_modality_positions"], jnp.int32)
    start = prefix_cache.Prefix(
        tokens,
        jnp.full((len(tokens),), tokens.shape[1]),
        spans,
        images,
    )

    @jax.jit
    def embed(params: Any, images: jax.Array) -> jax.Array:
        model = tuna.bind(config, params)
        layout = sequence_layout(spans, tokens.shape[1])
        return model.embed(tokens, layout, images, model.time_embedding(jnp.ones(spans.shape[:2])))

    out["gen_input_embeds"] = embed(params, images)
    count, key = len(x["gen_tokens"]), jax.random.key(0)
    free = text_decoder.generate(
        config, params, start, key, eos=-1, max_new_tokens=count, keep_logits=True
    )
    assert free.logits is not None
    out["gen_tokens"], out["gen_step_logits"] = free.tokens[0], free.logits[0]
    eos = int(x["gen_eos_token"])
    ended = text_decoder.generate(config, params, start, key, eos=eos, max_new_tokens=count)
    out["gen_tokens_eos"] = ended.tokens[0, : int(ended.lengths[0]) + 1]
    return out


def _full(golden: GoldenSet, case: Case) -> Computed:
    """A forward pass with losses, from noisy latents and velocity targets."""
    x = case.tensors
    rows = len(x["text_tokens"])
    clean, noise, t = _path(x["xt"], x["ut"], x["t"], rows)
    losses = losses_of(golden, batch_of(x, clean), noise, t)
    return in_case(case, forward(golden, x, component_cases.slots(x["xt"], rows), t) | losses)


def text_only(golden: GoldenSet, case: Case) -> Computed:
    """Text without images, and a batch in which one row has an unused slot."""
    x = case.tensors
    computed = forward(golden, x, None, None)
    sums, counts = text_loss(computed["logits"], jnp.asarray(x["text_labels"]))
    loss = sums.sum() / counts.sum()
    out = {
        "input_embeds": computed["input_embeds"],
        "logits": computed["logits"],
        "loss_ntp": loss,
        "loss_flow": 0.0 * loss,  # Without latents there is no flow term.
    }
    weight = golden.info["config"]["tuna_model"]["ntp_coeff"]
    out["wrapper_loss"] = Comparison(weight * loss, case.scalar("wrapper_loss"))
    rows = len(x["mix_text_tokens"])
    clean, noise, t = _path(x["mix_xt"], x["mix_ut"], x["mix_t"], rows)
    batch = batch_of(x, clean, "mix_")
    losses = losses_of(golden, batch, noise, t)
    noisy = component_cases.slots(x["mix_xt"], rows)
    mixed = outputs(golden.config, golden.params, batch["tokens"], batch["spans"], noisy, t)
    out["mix_logits"] = mixed["logits"]
    out["mix_loss_ntp"] = losses["loss_ntp"]
    return out


# ---- sampling ------------------------------------------------------------------------------------


def prefixes(x: Mapping[str, np.ndarray], source: jax.Array | None) -> list[prefix_cache.Prefix]:
    """[positive, negative] prefixes: everything before the last span, which is generated."""
    spans, tokens = x["modality_positions"], x["text_tokens"]
    half = len(tokens) // 2
    out = []
    for rows in (slice(0, half), slice(half, None)):
        lengths = spans[rows, -1, 0]
        prefix_tokens = tokens[rows, : int(lengths.max())]
        out.append(
            prefix_cache.Prefix(
                jnp.asarray(prefix_tokens),
                jnp.asarray(lengths),
                jnp.asarray(spans[rows, :-1]),
                None if source is None else source[:, None],
            )
        )
    return out


def _sampled(golden: GoldenSet, case: Case, source: jax.Array | None) -> dict[str, Any]:
    config, params, x = golden.config, golden.params, case.tensors
    positive, negative = prefixes(x, source)
    sampler = case.meta["sampler"]
    points, shift = sampler["num_steps"], sampler["time_shifting_factor"]
    states = flow_sampler.sample(
        config,
        params,
        positive,
        component_cases.last(x["z"]),
        negative=negative,
        guidance=float(case.scalar("guidance_scale")),
        steps=points - 1,
        shift=shift,
        trajectory=True,
    )
    out: dict[str, Any] = {"latents_final": component_cases.first(states[-1])}
    for name, match in component_cases.numbers(r"latents_after_(\d+)_updates", x):
        out[name] = component_cases.first(states[int(match[1]) - 1])
    decoded = component_cases.decode(config.video_vae, golden.vae_params, states[-1])
    out["decoded"] = component_cases.first(decoded)
    out["decoded_clamped"] = component_cases.first(jnp.clip(decoded, -1, 1))
    if "uint8" in x:
        out["uint8"] = flow_sampler.to_uint8(decoded[:, 0])
    if "grid" in x:
        out["grid"] = flow.time_grid(points - 1, shift)
    return out


def t2i_generate(golden: GoldenSet, case: Case) -> Computed:
    """Guided Euler sampling on the prefix cache, then decoding."""
    x, config = case.tensors, golden.config
    out = _sampled(golden, case, None)
    both = prefix_cache.join(*prefixes(x, None))
    noise = component_cases.last(x["z"])
    span = 1 + noise[0, ..., 0].size
    capacity = both.tokens.shape[1] + span

    @jax.jit
    def velocity(params: Any, both: prefix_cache.Prefix) -> jax.Array:
        cache, _ = prefix_cache.prefill(config, params, both, capacity, with_flow_head=True)
        return prefix_cache.span_prediction(
            config, params, cache, both.lengths, noise, jnp.zeros(())
        )

    return out | {"v_t0": component_cases.first(velocity(golden.params, both))}


def t2i_generate_edit(golden: GoldenSet, case: Case) -> Computed:
    """Guided sampling with a clean source image in both branches."""
    return _sampled(golden, case, component_cases.last(case.tensors["source_latents"]))


CASES: dict[str, Callable[[GoldenSet, Case], Computed]] = {
    "components": component_cases.components,
    "siglip": component_cases.siglip,
    "llm": component_cases.llm,
    "vae_image": component_cases.vae_image,
    "vae_video": component_cases.vae_video,
    "transport": component_cases.transport,
    "full_t2i_loss": full_t2i_loss,
    "full_t2i_wrapper": full_t2i_wrapper,
    "full_mmu": full_mmu,
    "full_edit": _full,
    "full_video": _full,
    "text_only": text_only,
    "t2i_generate": t2i_generate,
    "t2i_generate_edit": t2i_generate_edit,
}
