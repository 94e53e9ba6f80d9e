"""Computes the golden cases of single components of the models on pixels (model.md sections 12 and 13).

Goldens have images `B 3 1 H W`; ours are patches `B 1 h w C`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tuna_jax import flow
from tuna_jax.config import PixelConfig
from tuna_jax.models import pixels, representation, tuna
from tuna_jax.models.layers import RMSNorm
from tuna_jax.parity import component_cases
from tuna_jax.parity.component_cases import Computed
from tuna_jax.parity.golden_set import Case, Comparison, GoldenError, GoldenSet


def space(golden: GoldenSet) -> PixelConfig:
    """How its model reads pixels."""
    assert golden.config.pixels is not None
    return golden.config.pixels


def patches(golden: GoldenSet, images: Any) -> jax.Array:
    """`B 3 1 H W` -> `B 1 h w C`."""
    return pixels.patchify(component_cases.last(images), space(golden).patch)


def images_of(golden: GoldenSet, x: Any) -> jax.Array:
    """`B 1 h w C` -> `B 3 1 H W`."""
    return component_cases.first(pixels.unpatchify(jnp.asarray(x), space(golden).patch))


def slots(golden: GoldenSet, images: Any, rows: int) -> jax.Array:
    """`B*N 3 1 H W` -> `B N 1 h w C`."""
    x = patches(golden, images)
    return x.reshape(rows, -1, *x.shape[1:])


def noise_scale(golden: GoldenSet) -> float:
    """Standard deviation of its noise."""
    return golden.config.flow.noise_scale


# ---- components ----------------------------------------------------------------------------------


def components(golden: GoldenSet, case: Case) -> Computed:
    """What TUNA's case has, and the patch embedding, the order of predicted pixels, and the mask token."""
    x, config = case.tensors, golden.config
    model: Any = tuna.bind(config, golden.params)
    computed = dict(component_cases.components(golden, case))
    patch = space(golden).patch
    for name, match in component_cases.numbers(r"patch_(\w+)\.x", x):
        latents = pixels.patchify(component_cases.last(x[name]), patch)[:, None]
        _, _, height, width, _ = latents.shape
        convolved = model.embedding.patch(latents.reshape(len(latents), height * width, -1))
        convolved = jnp.moveaxis(convolved.reshape(len(latents), height, width, -1), -1, 1)
        computed[f"patch_{match[1]}.conv"] = convolved
        computed[f"patch_{match[1]}.out"] = model.embedding(latents)
    for name, match in component_cases.numbers(r"norm_out_eps7\.(.*)", x):
        norm = component_cases.module_of(model, config, match[1])
        other = RMSNorm(norm.scale[...].shape[0], 2.0**-7)
        other.scale = norm.scale
        computed[name] = other(300.0 * jnp.asarray(x[f"norm_in.{match[1]}"]))
    if "patch_norm_eps" in case.meta["scalars"]:
        eps = config.patch_norm_eps
        computed["patch_norm_eps"] = Comparison(eps, case.scalar("patch_norm_eps"))
    if "order.image" in x:
        image = component_cases.last(x["order.image"])  # B 1 H W 3
        height, width = (side // patch for side in image.shape[2:4])
        count = (len(image), 1, height, width)
        strips = jnp.asarray(x["order.pred"]).reshape(*count, -1)
        placed = tuna.in_place(config, strips)
        computed["order.pixels"] = images_of(golden, placed)
        # The inverse: what each token is trained to predict.
        onto = jax.linear_transpose(lambda s: tuna.in_place(config, s), strips)
        (tokens,) = onto(pixels.patchify(image, patch))
        computed["order.tokens"] = tokens.reshape(len(image), height * width, -1)
    if "mask.embeds" in x:
        hidden = jnp.asarray(x["mask.mask"]) > 0
        computed["mask.out"] = tuna.hide(model.mask_token, jnp.asarray(x["mask.embeds"]), hidden)
    return computed


def siglip(golden: GoldenSet, case: Case) -> Computed:
    """Encoder and connector on pixels: native grid, resized grids, the same count in another shape."""
    out: dict[str, Any] = {}
    model: Any = tuna.bind(golden.config, golden.params)
    for name, match in component_cases.numbers(r"(.*)\.x", case.tensors):
        latents = patches(golden, case.tensors[name])
        height, width = latents.shape[2:4]
        encoder = model.representation
        positions = representation.interpolate_positions(
            encoder.position[...], encoder.grid, height, width
        )
        hidden = encoder(latents)
        out[f"{match[1]}.pos_embed"] = positions[None]
        out[f"{match[1]}.hidden"] = hidden
        out[f"{match[1]}.proj"] = model.connector(hidden)
    return out


def transport(golden: GoldenSet, case: Case) -> Computed:
    """Times, noising, clean prediction to velocity and back, weights of the loss, grids, and both solvers."""
    x, constants = case.tensors, golden.config.flow
    floor, scale = constants.min_remaining, constants.noise_scale
    noise = golden.info["config"]["noise_scheduler"]
    normal = noise["P_mean"] + noise["P_std"] * jnp.asarray(x["u"])
    t = flow.training_time(normal)
    clean, eps = jnp.asarray(x["x1"]), scale * jnp.asarray(x["noise"])
    out: dict[str, Any] = {
        "t_sampled": t,
        "t_sampled_max_t0_1": flow.training_time(normal, t_min=1.0),
        "zt": flow.interpolate(clean, eps, t),
    }
    for name, match in component_cases.numbers(r"zt_t0(\d+)", x):
        fixed = jnp.full_like(t, float(f"0.{match[1]}"))
        out[name] = flow.interpolate(clean, eps, fixed)
    times, state = jnp.asarray(x["tv"]), out["zt"]
    out["v_from_x"] = flow.velocity_from_clean(jnp.asarray(x["x_pred"]), state, times, floor)
    out["x_from_v"] = flow.clean_from_velocity(jnp.asarray(x["v_in"]), state, times, floor)
    out |= _weighted_losses(x, floor)
    for name, match in component_cases.numbers(r"grid_(\d+)", x):
        out[name] = flow.time_grid(int(match[1]), 1.0)
    for _, match in component_cases.numbers(r"ode_(euler|heun)_(\w+)", x):
        if not match[2].endswith(("_guidance", "_times")):
            out |= _solve_toy(case, match[1], match[2], floor)
    return out


def _weighted_losses(x: Mapping[str, np.ndarray], floor: float) -> dict[str, Any]:
    t, mask = jnp.asarray(x["loss.t"]), jnp.asarray(x["loss.mask"]).astype(jnp.float32)
    weights = 1.0 / jnp.square(flow.remaining(t, floor))
    error = jnp.square(jnp.asarray(x["loss.pred"]) - jnp.asarray(x["loss.target"]))
    weighted = error * weights[:, None, None]

    def mean(values: jax.Array, mask: jax.Array) -> jax.Array:
        return (values * mask[..., None]).sum() / jnp.maximum(mask.sum() * values.shape[-1], 1.0)

    return {
        "loss.weights": weights,
        "loss.weighted": mean(weighted, mask),
        "loss.unweighted": mean(error, mask),
        "loss.nomask": mean(weighted, jnp.ones_like(mask)),
        "loss.empty_mask": mean(weighted, jnp.zeros_like(mask)),
    }


def _solve_toy(case: Case, solver: str, name: str, floor: float) -> dict[str, Any]:
    """States, and the time and guidance of every evaluation, of the toy model that the case describes."""
    x = case.tensors
    label = f"ode_{solver}_{name}"
    description = case.meta["tensors"][label]["desc"]
    match = re.search(r"guidance ([\d.]+), cfg_interval=(None|\(([\d.]+), ([\d.]+)\))", description)
    if match is None:
        raise GoldenError(f"transport/{label}: its description has no guidance and cfg_interval")
    scale = float(match[1])
    interval = flow.EVERYWHERE if match[2] == "None" else (float(match[3]), float(match[4]))
    bounds = flow.guidance_bounds(interval)
    w, start = jnp.asarray(x["ode_w"]), jnp.asarray(x["ode_y0"])
    points = len(x[label])
    calls: list[tuple[float, float]] = []

    def velocity(z: jax.Array, t: jax.Array) -> jax.Array:
        positive, negative = jnp.tanh(z @ w) + t, 0.5 * jnp.tanh(z @ w) - t * z / 3
        guides = bounds is None or flow.guides(t, jnp.asarray(bounds), ends=False)
        g = jnp.where(guides, scale, 1.0)
        jax.debug.callback(lambda t, g: calls.append((float(t), float(g))), t, g, ordered=True)
        return flow.velocity_from_clean(flow.guided(positive, negative, g), z, t, floor)

    grid = jnp.asarray(flow.time_grid(points - 1, 1.0))
    _, states = flow.integrate(velocity, start, grid, solver, euler_at_end=True)
    jax.effects_barrier()
    return {
        label: jnp.concatenate([start[None], states]),
        f"{label}_times": np.asarray([t for t, _ in calls], np.float32),
        f"{label}_guidance": np.asarray([g for _, g in calls], np.float32),
    }
