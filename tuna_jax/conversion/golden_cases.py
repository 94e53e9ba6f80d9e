"""How each golden case is computed with our code. A function a case: `(golden set, case) -> {tensor name: ours}`.

Goldens are channels-first, with the slots of a batch flattened (row `b * N + n`); ours are channels-last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax import flow
from tuna_jax.conversion import table
from tuna_jax.conversion.golden import Against, Case, GoldenError, GoldenSet
from tuna_jax.generation import images, prefix, text
from tuna_jax.models import layers, representation, rope, tuna, vae
from tuna_jax.models.attention import sequence_layout

Computed = Mapping[str, Any]

_encode_moments = jax.jit(vae.encode_moments, static_argnums=0, static_argnames="chunked")
_encode = jax.jit(vae.encode, static_argnums=0, static_argnames="chunked")
_decode = jax.jit(vae.decode, static_argnums=0, static_argnames="chunked")


def _last(x: Any) -> jax.Array:
    """`B C T h w` -> `B T h w C`."""
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def _first(x: Any) -> jax.Array:
    """`B T h w C` -> `B C T h w`."""
    return jnp.moveaxis(jnp.asarray(x), -1, 1)


def _slots(x: Any, batch: int) -> jax.Array:
    """`B*N C T h w` -> `B N T h w C`."""
    y = _last(x)
    return y.reshape(batch, -1, *y.shape[1:])


def _layer(stack: Any, index: int) -> Any:
    """One layer of a stacked module."""
    graphdef, params = layers.split(stack)
    return layers.merge(graphdef, jax.tree.map(lambda x: x[index], params))


def _numbers(pattern: str, names: Any) -> list[tuple[str, re.Match[str]]]:
    return [(name, match) for name in names if (match := re.fullmatch(pattern, name))]


# ---- components ----------------------------------------------------------------------------------


def _module(model: tuna.Tuna, config: Any, key: str) -> Any:
    """The norm module that owns the PyTorch key `key + '.weight'`, taken out of its stack if it is in one."""
    for row in table.rows(config):
        for index, name in enumerate(row.names()):
            if name == f"{key}.weight":
                parts, node = row.path.split(".")[:-1], model
                for part in parts:
                    node = getattr(node, part)
                    if part == "layers" and row.layers is not None:
                        node = _layer(node, index)
                return node
    raise GoldenError(f"the table has no {key}.weight")


def components(golden: GoldenSet, case: Case) -> Computed:
    """Time embedding, RoPE tables, a head block, the final layer, every norm's eps."""
    x, config = case.tensors, golden.config
    head = config.flow_head
    model = tuna.bind(config, golden.params)
    out: dict[str, Any] = {"time_embed": model.time_embedding(jnp.asarray(x["t"]))}
    grids: dict[int, tuple[int, int]] = {}
    for name, _ in _numbers(r"rope3d_\w", x):
        description = case.meta["tensors"][name]["desc"]
        match = re.search(r"latent_shape=\[(\d+), (\d+), (\d+)\]", description)
        if match is None:
            raise GoldenError(f"components/{name}: its description does not tell its latent shape")
        _, height, width = (int(n) for n in match.groups())
        count = len(x[name])
        grids.setdefault(count, (height, width))
        index = jnp.arange(count)[None]
        angles = rope.visual_angles(index, height, width, head.head_dim, head.visual_rope_base)[0]
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        out[name] = jnp.stack([cos, -sin, sin, cos], -1).reshape(*angles.shape, 2, 2)
    position = jnp.asarray(x["rope_positions"])
    out["head_inv_freq"] = rope.scaled_frequencies(head)
    # Our `half` table is sin with the sign of the swapped half in it.
    sign = np.sign(np.arange(head.head_dim) - head.head_dim / 2 + 0.5)
    table_ = rope.text_rotation(position, rope.scaled_frequencies(head))
    out["head_cos"], out["head_sin"] = table_.cos, table_.half * sign
    language = config.language
    frequencies = rope.inverse_frequencies(language.head_dim, language.rope_base)
    table_ = rope.text_rotation(position, frequencies)
    sign = np.sign(np.arange(language.head_dim) - language.head_dim / 2 + 0.5)
    out["llm_cos"], out["llm_sin"] = table_.cos, table_.half * sign

    spans = jnp.asarray(x["rope_mp"])
    grid = grids[int(x["rope_mp"][0, 0, 1]) - 1]
    layout = sequence_layout(spans, x["q"].shape[2])
    rotation = rope.flow_head_rotation(layout, head, *grid)
    for name in ("q", "k"):
        turned = rope.rotate(jnp.asarray(x[name]).swapaxes(1, 2), rotation)
        out[f"{name}_rope"] = turned.swapaxes(1, 2)

    block, final = _layer(model.flow_head.layers, 0), model.flow_head.final
    rows = spans.shape[:2]
    time, zero = (jnp.asarray(x[n]).reshape(*rows, -1) for n in ("adaln_input", "adaln_zero"))
    hidden, small = jnp.asarray(x["hidden"]), jnp.asarray(x["hidden_small"])
    out["block0_out"] = block(hidden, time, rotation, layout)[0]
    out["final_out"] = final(hidden, time, layout)
    # Which conditioning goes with the tiny input is the one thing the descriptions leave open: zeros.
    out["block0_small_out"] = block(small, zero, rotation, layout)[0]
    out["final_small_out"] = final(10 * small, zero, layout)
    for name, match in _numbers(r"norm_in\.(.*)", x):
        module = _module(model, config, match[1])
        out[f"norm_out.{match[1]}"] = module(jnp.asarray(x[name]))
    return out


def siglip(golden: GoldenSet, case: Case) -> Computed:
    """The representation encoder and the connector, on native and interpolated grids and on video."""
    out: dict[str, Any] = {}
    model = tuna.bind(golden.config, golden.params)
    for name, match in _numbers(r"(.*)\.x", case.tensors):
        latents = _last(case.tensors[name])
        batch, time, height, width, _ = latents.shape
        encoder = model.representation
        positions = representation.interpolate_positions(
            encoder.position[...], encoder.grid, height, width
        )
        hidden = encoder(latents).reshape(batch * time, height * width, -1)
        out[f"{match[1]}.pos_embed"] = positions[None]
        out[f"{match[1]}.hidden"] = hidden
        out[f"{match[1]}.proj"] = model.connector(hidden)
    return out


def llm(golden: GoldenSet, case: Case) -> Computed:
    """The language transformer under the omni mask, layer by layer."""
    model = tuna.bind(golden.config, golden.params)
    x = jnp.asarray(case.tensors["inputs_embeds"])
    length = x.shape[1]
    layout = sequence_layout(jnp.asarray(case.tensors["modality_positions"]), length)
    hidden, _ = model.language(x, layout)
    visible = jnp.arange(length) < layout.visible_end[:, :, None]
    sizes = golden.config.language
    frequencies = rope.inverse_frequencies(sizes.head_dim, sizes.rope_base)
    rotation = rope.text_rotation(layout.position, frequencies)
    out: dict[str, Any] = {
        "mask_allowed": visible[:, None].astype(jnp.uint8),
        "last_hidden_state": hidden,
        "logits": model.language.logits(hidden),
        "inv_freq": frequencies,
    }
    for index in range(sizes.layers):
        if f"hidden_{index}" in case.tensors:
            out[f"hidden_{index}"] = x
        x, _ = _layer(model.language.layers, index)(x, rotation, layout)
    return out


# ---- VAE -----------------------------------------------------------------------------------------


def vae_image(golden: GoldenSet, case: Case) -> Computed:
    """Encoding, the posterior and decoding of a single picture."""
    x, config, params = case.tensors, golden.config.vae, golden.vae_params
    pixels = _last(x["image"])
    mu_raw, log_var = _encode_moments(config, params, pixels)
    latents, _ = _encode(config, params, pixels)
    decoded = _decode(config, params, latents)
    return {
        "patchified": _first(vae.space_to_depth(pixels)),
        "mu_raw": _first(mu_raw),
        "log_var": _first(log_var),
        "latents": _first(latents),
        "posterior_sample": _first(vae.sample_posterior(config, latents, log_var, _last(x["eps"]))),
        "decoded": _first(decoded),
        "decoded_clamped": _first(jnp.clip(decoded, -1, 1)),
        "decoded_z_random": _first(_decode(config, params, _last(x["z_random"]))),
    }


def vae_video(golden: GoldenSet, case: Case) -> Computed:
    """Whole-clip encoding and decoding against the released code's chunks, and our own chunks beside them."""
    x, config, params = case.tensors, golden.config.vae, golden.vae_params
    out: dict[str, Any] = {}
    for name, match in _numbers(r"latents_(\d+)f", x):
        frames = int(match[1])
        clip = _last(x["clip"][:, :, :frames])
        if f"vae_video/{name}" in _REFUSED_CLIPS:
            _expect_refusal(config, params, clip)
            continue
        latents, log_var = _encode(config, params, clip)
        out[name], out[f"log_var_{frames}f"] = _first(latents), _first(log_var)
        chunked, _ = _encode(config, params, clip, chunked=True)
        out[f"{name} (chunked)"] = Against(_first(chunked), x[name])
        if f"decoded_{frames}f" in x:
            out[f"decoded_{frames}f"] = _first(_decode(config, params, latents))
            again = _decode(config, params, latents, chunked=True)
            out[f"decoded_{frames}f (chunked)"] = Against(_first(again), x[f"decoded_{frames}f"])
    out["decoded_z_random"] = _first(_decode(config, params, _last(x["z_random"])))
    return out


_REFUSED_CLIPS = ("vae_video/latents_11f",)


def _expect_refusal(config: Any, params: Any, clip: jax.Array) -> None:
    try:
        _encode(config, params, clip)
    except ValueError:
        return
    raise GoldenError(f"a clip of {clip.shape[1]} frames was encoded; it must be refused")


# ---- flow ----------------------------------------------------------------------------------------


def transport(golden: GoldenSet, case: Case) -> Computed:
    """Time shift, training times, the path, sampling grids, Euler."""
    del golden
    x = case.tensors
    normal = jnp.asarray(x["u"])
    t = flow.training_time(normal, mu=flow.shift_mu())
    clean, noise = jnp.asarray(x["x1"]), jnp.asarray(x["x0"])
    out: dict[str, Any] = {
        "t_sampled": t,
        "t_sampled_max_t0_1": flow.training_time(normal, t_min=1.0, mu=flow.shift_mu()),
        "t_sampled_max_t0_05": flow.training_time(normal, t_min=0.5, mu=flow.shift_mu()),
        "t_sampled_noshift": flow.training_time(normal),
        "xt": flow.interpolate(clean, noise, t),
        "ut": clean - noise,
    }
    for name, match in _numbers(r"ts_out_seq(\d+)", x):
        out[name] = flow.shift_time(jnp.asarray(x["ts_in"]), flow.shift_mu(int(match[1])))
    for name, match in _numbers(r"grid_(\d+)_(?:shift(\d+)|noshift)(?:_noise(\d)(\d+))?", x):
        points = int(match[1])
        grid = flow.time_grid(points, float(match[2] or 1))
        level = float(f"{match[3]}.{match[4]}") if match[3] else 1.0
        out[name] = grid[int((1 - level) * points) :]

    def derivative(y: jax.Array, t: jax.Array) -> jax.Array:
        return -y * (1 + t) + jnp.sin(3 * t) + 0.1 * y**2

    start = jnp.asarray(x["euler_y0"])
    points = len(x["euler_traj"])
    _, states = flow.integrate(derivative, start, jnp.asarray(flow.time_grid(points, 3.0)))
    out["euler_traj"] = jnp.concatenate([start[None], states])
    for tokens, mu in case.scalar("mu_by_seq_len").items():
        out[f"mu({tokens})"] = Against(flow.shift_mu(int(tokens)), mu)
    out["transport_seq_len"] = Against(flow.SHIFT_TOKENS, case.scalar("transport_seq_len"))
    return out


# ---- whole model ---------------------------------------------------------------------------------


def _batch(x: Mapping[str, np.ndarray], clean: jax.Array, name: str = "") -> dict[str, jax.Array]:
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


def _forward(golden: GoldenSet, x: Mapping[str, np.ndarray], noisy: Any, t: Any) -> dict[str, Any]:
    tokens, spans = jnp.asarray(x["text_tokens"]), jnp.asarray(x["modality_positions"])
    run = jax.jit(tuna.forward, static_argnums=0)
    result = run(golden.config, golden.params, tokens, spans, noisy, t)
    model = tuna.bind(golden.config, golden.params)
    layout = sequence_layout(spans, tokens.shape[1])
    time = None if t is None else model.time_embedding(t)
    out = {
        "input_embeds": model.embed(tokens, layout, noisy, time),
        "logits": tuna.logits(golden.config, golden.params, result.hidden),
        "last_hidden": result.hidden,
    }
    if noisy is not None:
        out["v_pred_all"] = result.velocity
        assert result.velocity is not None
        velocity = tuna.span_velocities(result.velocity, spans, noisy.shape[2:])
        out["v_pred"] = _first(velocity.reshape(-1, *velocity.shape[2:]))
    return out


def _losses(
    golden: GoldenSet, batch: dict[str, jax.Array], noise: jax.Array, t: jax.Array
) -> tuple[dict[str, Any], Any]:
    weights = golden.info["config"]["tuna_model"]

    def objective(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        return tuna.loss(
            golden.config,
            params,
            batch,
            noise,
            t,
            flow_weight=weights["flow_coeff"],
            text_weight=weights["ntp_coeff"],
        )

    (total, terms), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(golden.params)
    return {
        "loss_flow": terms["flow_loss"],
        "loss_ntp": terms["text_loss"],
        "loss_total": total,
    }, grads


def _known(case: Case, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in case.tensors}


def _path(xt: Any, ut: Any, t: Any, batch: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(clean, noise, t) of slots from noisy latents and velocities: `x_1 = x_t + (1 - t) u`, `x_0 = x_t - t u`."""
    noisy, velocity = _slots(xt, batch), _slots(ut, batch)
    times = jnp.asarray(t).reshape(batch, -1)
    wide = times[:, :, None, None, None, None]
    return noisy + (1 - wide) * velocity, noisy - wide * velocity, times


def full_t2i_loss(golden: GoldenSet, case: Case) -> Computed:
    """A training step: forward, losses, gradients of every parameter."""
    x = case.tensors
    rows = len(x["text_tokens"])
    clean, noise = _slots(x["x1"], rows), _slots(x["x0"], rows)
    t = jnp.asarray(x["t"]).reshape(rows, -1)
    batch = _batch(x, clean)
    losses, grads = _losses(golden, batch, noise, t)
    model = tuna.bind(golden.config, golden.params)
    noisy = flow.interpolate(clean, noise, t)
    computed = _forward(golden, x, noisy, t) | losses
    computed["image_embeds"] = model.visual_tokens(noisy).reshape(x["image_embeds"].shape)
    layout = sequence_layout(batch["spans"], batch["tokens"].shape[1])
    rotation = rope.flow_head_rotation(layout, golden.config.flow_head, *noisy.shape[3:5])
    hidden, time = computed["last_hidden"], model.time_embedding(t)
    for index in range(golden.config.flow_head.layers):
        hidden, _ = _layer(model.flow_head.layers, index)(hidden, time, rotation, layout)
        computed[f"head_{index}"] = hidden
    out = dict(_known(case, computed))

    zeros = jax.tree.map(jnp.zeros_like, {"vae": golden.vae_params})
    state = table.to_torch(golden.config, jax.tree.map(np.asarray, grads | zeros))
    for name, match in _numbers(r"grad\.(.*)", x):
        out[name] = state[match[1]]
    total = float(case.scalar("global_grad_norm"))
    for key, norm in case.meta["grad_norms"].items():
        # Analytically zero gradients (SigLIP key biases) are rounding noise on both sides.
        out[f"grad_norm.{key}"] = Against(np.linalg.norm(state[key]), norm, floor=1e-7 * total)
    repeated = table.aliases(golden.config)
    trained = {k: v for k, v in state.items() if not k.startswith("vae.") and k not in repeated}
    ours = np.sqrt(sum(float(np.sum(np.square(v, dtype=np.float64))) for v in trained.values()))
    out["global_grad_norm"] = Against(ours, total)
    missing = set(trained) - set(case.meta["grad_norms"]) - set(case.meta["params_without_grad"])
    out["parameters without a golden gradient"] = Against(len(missing), 0)
    ignored = batch | {"labels": jnp.asarray(x["text_labels_official"])}
    silent, _ = _losses(golden, ignored, noise, t)
    reference = case.scalar("loss_ntp_official_labels")
    out["loss_ntp_official_labels"] = Against(silent["loss_ntp"], reference)
    return out


def full_t2i_wrapper(golden: GoldenSet, case: Case) -> Computed:
    """From RGB: posterior sample, training time, noisy latents, loss."""
    x, config = case.tensors, golden.config.vae
    rows = len(x["text_tokens"])
    mu, log_var = _encode(config, golden.vae_params, _last(x["images"][:, :, None]))
    latents = vae.sample_posterior(config, mu, log_var, _last(x["eps"]))
    t = flow.training_time(jnp.asarray(x["u"]), mu=flow.shift_mu())
    noise = _last(x["x0"])
    noisy = flow.interpolate(latents, noise, t)
    slot_t = t.reshape(rows, -1)
    batch = _batch(x, latents[:, None])
    losses, _ = _losses(golden, batch, noise[:, None], slot_t)
    return {
        "latents": _first(latents),
        "t": t,
        "xt": _first(noisy),
        "ut": _first(latents - noise),
        "logits": _forward(golden, x, noisy[:, None], slot_t)["logits"],
        "loss": losses["loss_total"],
        "loss_flow": losses["loss_flow"],
        "loss_ntp": losses["loss_ntp"],
    }


def full_mmu(golden: GoldenSet, case: Case) -> Computed:
    """Understanding: the text loss, and greedy decoding with the KV cache."""
    x, config, params = case.tensors, golden.config, golden.params
    rows = len(x["text_tokens"])
    clean = _slots(x["image_latents"], rows)
    t = jnp.asarray(x["t"]).reshape(rows, -1)
    batch = _batch(x, clean) | {"is_target": jnp.zeros(clean.shape[:2], bool)}
    losses, _ = _losses(golden, batch, jnp.zeros_like(clean), t)
    out = dict(_known(case, _forward(golden, x, clean, t) | {"loss_ntp": losses["loss_ntp"]}))
    out["loss_flow (no flow targets)"] = Against(losses["loss_flow"], 0.0)

    tokens = jnp.asarray(x["gen_text_tokens"], jnp.int32)
    spans = jnp.asarray(x["gen_modality_positions"], jnp.int32)
    start = prefix.Prefix(
        tokens,
        jnp.full((len(tokens),), tokens.shape[1]),
        spans,
        _slots(x["gen_image_latents"], len(tokens)),
    )
    model = tuna.bind(config, params)
    layout = sequence_layout(spans, tokens.shape[1])
    time = model.time_embedding(jnp.ones(spans.shape[:2]))
    out["gen_input_embeds"] = model.embed(tokens, layout, start.latents, time)
    count, key = len(x["gen_tokens"]), jax.random.key(0)
    free = text.generate(config, params, start, key, eos=-1, max_new_tokens=count, keep_logits=True)
    assert free.logits is not None
    out["gen_tokens"], out["gen_step_logits"] = free.tokens[0], free.logits[0]
    eos = int(x["gen_eos_token"])
    ended = text.generate(config, params, start, key, eos=eos, max_new_tokens=count)
    out["gen_tokens_eos"] = ended.tokens[0, : int(ended.lengths[0]) + 1]
    return out


def _full(golden: GoldenSet, case: Case) -> Computed:
    """A forward pass with losses, from noisy latents and velocity targets."""
    x = case.tensors
    rows = len(x["text_tokens"])
    clean, noise, t = _path(x["xt"], x["ut"], x["t"], rows)
    losses, _ = _losses(golden, _batch(x, clean), noise, t)
    return _known(case, _forward(golden, x, _slots(x["xt"], rows), t) | losses)


def text_only(golden: GoldenSet, case: Case) -> Computed:
    """Text without pictures, and a batch in which one row leaves a slot unused."""
    x, config, params = case.tensors, golden.config, golden.params
    forward = _forward(golden, x, None, None)
    sums, counts = tuna.text_loss(forward["logits"], jnp.asarray(x["text_labels"]))
    loss = sums.sum() / counts.sum()
    out = {
        "input_embeds": forward["input_embeds"],
        "logits": forward["logits"],
        "loss_ntp": loss,
        "loss_flow": 0.0 * loss,  # no latents, no flow term
    }
    weight = golden.info["config"]["tuna_model"]["ntp_coeff"]
    out["wrapper_loss"] = Against(weight * loss, case.scalar("wrapper_loss"))
    rows = len(x["mix_text_tokens"])
    clean, noise, t = _path(x["mix_xt"], x["mix_ut"], x["mix_t"], rows)
    batch = _batch(x, clean, "mix_")
    losses, _ = _losses(golden, batch, noise, t)
    result = tuna.forward(
        config, params, batch["tokens"], batch["spans"], _slots(x["mix_xt"], rows), t
    )
    out["mix_logits"] = tuna.logits(config, params, result.hidden)
    out["mix_loss_ntp"] = losses["loss_ntp"]
    return out


# ---- sampling ------------------------------------------------------------------------------------


def _prefixes(x: Mapping[str, np.ndarray], source: jax.Array | None) -> list[prefix.Prefix]:
    """[positive, negative] prefixes: everything before the last span, which is the one to generate."""
    spans, tokens = x["modality_positions"], x["text_tokens"]
    half = len(tokens) // 2
    out = []
    for rows in (slice(0, half), slice(half, None)):
        lengths = spans[rows, -1, 0]
        shown = tokens[rows, : int(lengths.max())]
        out.append(
            prefix.Prefix(
                jnp.asarray(shown),
                jnp.asarray(lengths),
                jnp.asarray(spans[rows, :-1]),
                None if source is None else source[:, None],
            )
        )
    return out


def _sampled(golden: GoldenSet, case: Case, source: jax.Array | None) -> dict[str, Any]:
    config, params, x = golden.config, golden.params, case.tensors
    positive, negative = _prefixes(x, source)
    sampler = case.meta["sampler"]
    points, shift = sampler["num_steps"], sampler["time_shifting_factor"]
    states = images.sample(
        config,
        params,
        positive,
        _last(x["z"]),
        negative=negative,
        guidance=float(case.scalar("guidance_scale")),
        points=points,
        shift=shift,
        trajectory=True,
    )
    out: dict[str, Any] = {"latents_final": _first(states[-1])}
    for name, match in _numbers(r"latents_after_(\d+)_updates", x):
        out[name] = _first(states[int(match[1]) - 1])
    decoded = _decode(config.vae, golden.vae_params, states[-1])
    out["decoded"] = _first(decoded)
    out["decoded_clamped"] = _first(jnp.clip(decoded, -1, 1))
    if "uint8" in x:
        out["uint8"] = images.to_uint8(decoded[:, 0])
    if "grid" in x:
        out["grid"] = flow.time_grid(points, shift)
    return out


def t2i_generate(golden: GoldenSet, case: Case) -> Computed:
    """Guided Euler sampling on the prefix cache, then decoding."""
    x, config = case.tensors, golden.config
    out = _sampled(golden, case, None)
    both = prefix.join(*_prefixes(x, None))
    noise = jnp.concatenate([_last(x["z"])] * 2)
    span = 1 + noise[0, ..., 0].size
    capacity = both.tokens.shape[1] + span
    cache, _ = prefix.prefill(config, golden.params, both, capacity, with_flow_head=True)
    zero = jnp.zeros(len(noise))
    velocity = prefix.span_velocity(config, golden.params, cache, both.lengths, noise, zero)
    return out | {"v_t0": _first(velocity)}


def t2i_generate_edit(golden: GoldenSet, case: Case) -> Computed:
    """The same with a clean source picture in both branches."""
    return _sampled(golden, case, _last(case.tensors["source_latents"]))


CASES: dict[str, Callable[[GoldenSet, Case], Computed]] = {
    "components": components,
    "siglip": siglip,
    "llm": llm,
    "vae_image": vae_image,
    "vae_video": vae_video,
    "transport": transport,
    "full_t2i_loss": full_t2i_loss,
    "full_t2i_wrapper": full_t2i_wrapper,
    "full_mmu": full_mmu,
    "full_edit": _full,
    "full_video": _full,
    "text_only": text_only,
    "t2i_generate": t2i_generate,
    "t2i_generate_edit": t2i_generate_edit,
}
