"""Computes the golden cases of single components: small parts, representation encoder, language model, VAE, flow.

Goldens are channels-first with flattened slots (row `b * N + n`); ours are channels-last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax import flow
from tuna_jax.config import TunaConfig
from tuna_jax.conversion import weight_map
from tuna_jax.models import layers, representation, rope, tuna, vae
from tuna_jax.models.attention import sequence_layout
from tuna_jax.parity.golden_set import Case, Comparison, GoldenError, GoldenSet

Computed = Mapping[str, Any]

encode_moments = jax.jit(vae.encode_moments, static_argnums=0, static_argnames="chunked")
encode = jax.jit(vae.encode, static_argnums=0, static_argnames="chunked")
decode = jax.jit(vae.decode, static_argnums=0, static_argnames="chunked")


def last(x: Any) -> jax.Array:
    """`B C T h w` -> `B T h w C`."""
    return jnp.moveaxis(jnp.asarray(x), 1, -1)


def first(x: Any) -> jax.Array:
    """`B T h w C` -> `B C T h w`."""
    return jnp.moveaxis(jnp.asarray(x), -1, 1)


def slots(x: Any, batch: int) -> jax.Array:
    """`B*N C T h w` -> `B N T h w C`."""
    y = last(x)
    return y.reshape(batch, -1, *y.shape[1:])


def layer(stack: Any, index: int) -> Any:
    """Layer `index` of a stacked module."""
    graphdef, params = layers.split(stack)
    return layers.merge(graphdef, jax.tree.map(lambda x: x[index], params))


def numbers(pattern: str, names: Any) -> list[tuple[str, re.Match[str]]]:
    """The names that match a whole pattern, each with its match."""
    return [(name, match) for name in names if (match := re.fullmatch(pattern, name))]


# ---- components ----------------------------------------------------------------------------------


def module_of(model: Any, config: Any, key: str) -> Any:
    """The norm module with the PyTorch key `key + '.weight'`; a single layer if it is stacked."""
    for row in weight_map.rows(config):
        for index, name in enumerate(row.names()):
            if name == f"{key}.weight":
                parts, node = row.path.split(".")[:-1], model
                for part in parts:
                    node = getattr(node, part)
                    if part == "layers" and row.layers is not None:
                        node = layer(node, index)
                return node
    raise GoldenError(f"the weight map has no {key}.weight")


def components(golden: GoldenSet, case: Case) -> Computed:
    """Time embedding, RoPE tables, a block of the flow head, the final layer, and eps of every norm."""
    x, config = case.tensors, golden.config
    head = config.flow_head
    model = tuna.bind(config, golden.params)
    out: dict[str, Any] = {"time_embed": model.time_embedding(jnp.asarray(x["t"]))}
    grids: dict[int, tuple[int, int]] = {}
    for name, _ in numbers(r"rope3d_\w", x):
        description = case.meta["tensors"][name]["desc"]
        match = re.search(r"latent_shape=\[(\d+), (\d+), (\d+)\]", description)
        if match is None:
            raise GoldenError(f"components/{name}: its description has no latent_shape")
        # The released pixel models give the extents in pixels, and the side of a patch.
        patch = re.search(r"patch_size=(\d+)", description)
        _, height, width = (int(n) for n in match.groups())
        if patch is not None:
            height, width = height // int(patch[1]), width // int(patch[1])
        count = len(x[name])
        grids.setdefault(count, (height, width))
        index = jnp.arange(count)[None]
        angles = rope.visual_angles(index, height, width, head.head_dim, head.visual_rope_base)[0]
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        out[name] = jnp.stack([cos, -sin, sin, cos], -1).reshape(*angles.shape, 2, 2)
    if "rope_positions" in x:
        out |= _tables(config, jnp.asarray(x["rope_positions"]))

    spans = jnp.asarray(x["rope_mp"])
    grid = grids[int(x["rope_mp"][0, 0, 1]) - 1]
    layout = sequence_layout(spans, x["q"].shape[2])
    rotation = rope.flow_head_rotation(layout, head, *grid)
    for name in ("q", "k"):
        rotated = rope.rotate(jnp.asarray(x[name]).swapaxes(1, 2), rotation)
        out[f"{name}_rope"] = rotated.swapaxes(1, 2)

    block, final = layer(model.flow_head.layers, 0), model.flow_head.final
    rows = spans.shape[:2]
    time, zero = (jnp.asarray(x[n]).reshape(*rows, -1) for n in ("adaln_input", "adaln_zero"))
    hidden, small = jnp.asarray(x["hidden"]), jnp.asarray(x["hidden_small"])
    out["block0_out"] = block(hidden, time, rotation, layout)[0]
    out["final_out"] = final(hidden, time, layout)
    # The descriptions do not specify the conditioning of the small input; it is zero.
    out["block0_small_out"] = block(small, zero, rotation, layout)[0]
    if "final_small_out" in x:
        out["final_small_out"] = final(10 * small, zero, layout)
    for name, match in numbers(r"norm_in\.(.*)", x):
        module = module_of(model, config, match[1])
        out[f"norm_out.{match[1]}"] = module(jnp.asarray(x[name]))
    return out


def _tables(config: TunaConfig, position: jax.Array) -> dict[str, Any]:
    """Frequencies and tables of both transformers' RoPE on text."""
    head, out = config.flow_head, {}
    out["head_inv_freq"] = rope.scaled_frequencies(head)
    # Our `half` table is sin with the sign of the swapped half.
    sign = np.sign(np.arange(head.head_dim) - head.head_dim / 2 + 0.5)
    table_ = rope.text_rotation(position, rope.scaled_frequencies(head))
    out["head_cos"], out["head_sin"] = table_.cos, table_.half * sign
    language = config.language
    frequencies = rope.inverse_frequencies(language.head_dim, language.rope_base)
    table_ = rope.text_rotation(position, frequencies)
    sign = np.sign(np.arange(language.head_dim) - language.head_dim / 2 + 0.5)
    out["llm_cos"], out["llm_sin"] = table_.cos, table_.half * sign
    return out


def siglip(golden: GoldenSet, case: Case) -> Computed:
    """The representation encoder and the connector, on native and interpolated grids and on video."""
    out: dict[str, Any] = {}
    model: Any = tuna.bind(golden.config, golden.params)
    for name, match in numbers(r"(.*)\.x", case.tensors):
        latents = last(case.tensors[name])
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
        x, _ = layer(model.language.layers, index)(x, rotation, layout)
    return out


# ---- VAE -----------------------------------------------------------------------------------------


def vae_image(golden: GoldenSet, case: Case) -> Computed:
    """Encoding, posterior and decoding of a single image."""
    x, config, params = case.tensors, golden.config.video_vae, golden.vae_params
    pixels = last(x["image"])
    mu_raw, log_var = encode_moments(config, params, pixels)
    latents, _ = encode(config, params, pixels)
    decoded = decode(config, params, latents)
    return {
        "patchified": first(vae.space_to_depth(pixels)),
        "mu_raw": first(mu_raw),
        "log_var": first(log_var),
        "latents": first(latents),
        "posterior_sample": first(vae.sample_posterior(config, latents, log_var, last(x["eps"]))),
        "decoded": first(decoded),
        "decoded_clamped": first(jnp.clip(decoded, -1, 1)),
        "decoded_z_random": first(decode(config, params, last(x["z_random"]))),
    }


def vae_video(golden: GoldenSet, case: Case) -> Computed:
    """Encoding and decoding of whole clips, and in our chunks, compared with the chunks of the released code."""
    x, config, params = case.tensors, golden.config.video_vae, golden.vae_params
    out: dict[str, Any] = {}
    for name, match in numbers(r"latents_(\d+)f", x):
        frames = int(match[1])
        clip = last(x["clip"][:, :, :frames])
        if not is_clip_length(frames, config.temporal_factor):
            _expect_error(config, params, clip)
            continue
        latents, log_var = encode(config, params, clip)
        out[name], out[f"log_var_{frames}f"] = first(latents), first(log_var)
        chunked, _ = encode(config, params, clip, chunked=True)
        out[f"{name} (chunked)"] = Comparison(first(chunked), x[name])
        if f"decoded_{frames}f" in x:
            out[f"decoded_{frames}f"] = first(decode(config, params, latents))
            in_chunks = decode(config, params, latents, chunked=True)
            out[f"decoded_{frames}f (chunked)"] = Comparison(
                first(in_chunks), x[f"decoded_{frames}f"]
            )
    out["decoded_z_random"] = first(decode(config, params, last(x["z_random"])))
    return out


def is_clip_length(frames: int, temporal_factor: int) -> bool:
    """Whether a clip has 1 + `temporal_factor` k frames. Of others the released code drops some; ours is an error."""
    return frames >= 1 and (frames - 1) % temporal_factor == 0


def _expect_error(config: Any, params: Any, clip: jax.Array) -> None:
    try:
        encode(config, params, clip)
    except ValueError:
        return
    raise GoldenError(f"a clip of {clip.shape[1]} frames was encoded; it must be an error")


# ---- flow ----------------------------------------------------------------------------------------


def transport(golden: GoldenSet, case: Case) -> Computed:
    """Time shift, training times, the probability path, sampling grids, and the Euler solver."""
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
    for name, match in numbers(r"ts_out_seq(\d+)", x):
        out[name] = flow.shift_time(jnp.asarray(x["ts_in"]), flow.shift_mu(int(match[1])))
    for name, match in numbers(r"grid_(\d+)_(?:shift(\d+)|noshift)(?:_noise(\d)(\d+))?", x):
        points = int(match[1])
        grid = flow.time_grid(points - 1, float(match[2] or 1))
        level = float(f"{match[3]}.{match[4]}") if match[3] else 1.0
        out[name] = grid[int((1 - level) * points) :]

    def derivative(y: jax.Array, t: jax.Array) -> jax.Array:
        return -y * (1 + t) + jnp.sin(3 * t) + 0.1 * y**2

    start = jnp.asarray(x["euler_y0"])
    points = len(x["euler_traj"])
    _, states = flow.integrate(derivative, start, jnp.asarray(flow.time_grid(points - 1, 3.0)))
    out["euler_traj"] = jnp.concatenate([start[None], states])
    for tokens, mu in case.scalar("mu_by_seq_len").items():
        out[f"mu({tokens})"] = Comparison(flow.shift_mu(int(tokens)), mu)
    out["transport_seq_len"] = Comparison(flow.SHIFT_TOKENS, case.scalar("transport_seq_len"))
    return out
