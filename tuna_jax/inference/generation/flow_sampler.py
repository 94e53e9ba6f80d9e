"""Pictures and clips from noise: guided flow sampling on a cached prefix (model.md section 9)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tuna_jax import flow
from tuna_jax.config import TunaConfig
from tuna_jax.inference.generation.prefix_cache import (
    Prefix,
    join,
    prefill,
    prepared,
    span_velocity,
)
from tuna_jax.models.cpu_fast_paths import unstack, unstacks
from tuna_jax.models.layers import Params
from tuna_jax.models.logical_sharding import LogicalSharding, use_sharding

Latent = Float[Array, "b t h w c"]


@functools.partial(
    jax.jit, static_argnames=("config", "steps", "shift", "solver", "trajectory", "sharding")
)
def _sample(
    config: TunaConfig,
    params: Params,
    positive: Prefix,
    negative: Prefix | None,
    noise: Latent,
    guidance: Array,
    bounds: Float[Array, " 2"] | None,
    steps: int,
    shift: float,
    solver: str,
    trajectory: bool,
    sharding: LogicalSharding | None,
) -> Array:
    with use_sharding(sharding):
        velocity = _velocity(config, params, positive, negative, noise, guidance, bounds)
        grid = jnp.asarray(flow.time_grid(steps, shift))
        final, states = flow.integrate(velocity, noise.astype(jnp.float32), grid, solver)
        return states if trajectory else final


def _velocity(
    config: TunaConfig,
    params: Params,
    positive: Prefix,
    negative: Prefix | None,
    noise: Latent,
    guidance: Array,
    bounds: Float[Array, " 2"] | None,
) -> flow.Velocity:
    """The velocity to follow, guided within `bounds` (None: everywhere), on the prefixes' cache."""
    params = prepared(config, params)
    prefix = positive if negative is None else join(positive, negative)
    span = 1 + noise.shape[1] * noise.shape[2] * noise.shape[3]
    cache, _ = prefill(config, params, prefix, prefix.tokens.shape[1] + span, with_flow_head=True)
    # The rows of the positive side stand first. Cut out once, not at every step, and so are the layers.
    kept = jax.tree.map(lambda leaf: leaf[:, : len(noise)], cache)
    cache, kept = unstack((cache, kept)) if unstacks(config) else (cache, kept)

    def everywhere(x: Latent, t: Array) -> Latent:
        v = span_velocity(config, params, cache, prefix.lengths, x, t)
        return v if negative is None else flow.guided(v[: len(x)], v[len(x) :], guidance)

    if bounds is None:
        return everywhere

    def alone(x: Latent, t: Array) -> Latent:
        v = span_velocity(config, params, kept, positive.lengths, x, t)
        return v.astype(jnp.float32)  # as guidance, a float32, leaves the other side

    return lambda x, t: jax.lax.cond(flow.guides(t, bounds), everywhere, alone, x, t)


def sample(
    config: TunaConfig,
    params: Params,
    positive: Prefix,
    noise: Latent,
    *,
    negative: Prefix | None = None,
    guidance: float = 3.0,
    guidance_interval: Sequence[float] = flow.EVERYWHERE,
    steps: int = 49,
    shift: float = 3.0,
    solver: str = "euler",
    trajectory: bool = False,
    sharding: LogicalSharding | None = None,
) -> Array:
    """Latents that the prompts ask for; one compiled program a shape.

    Args:
      config, params: the model.
      positive: tokens up to and including `<boi>` of the span to generate, with clean source slots for editing.
      noise: start at t = 0, standard normal, `[B, T, h, w, C]`.
      negative: the other side of guidance (a negative or empty prompt); needed when guidance is neither 0 nor 1.
      guidance: scale g of `v_neg + g (v_pos - v_neg)`; 0 and 1 sample without guidance, from the positive side alone.
      guidance_interval: (low, high): guidance is applied at times of the grid within it, ends included. At the others
        the positive side runs alone, for half the work. All intervals but (0, 1) share one program.
      steps: solver steps; the time grid has one point more.
      shift: `a` of the grid's map.
      solver: 'euler' or 'heun'.
      trajectory: return the states after every step instead, `[steps, B, T, h, w, C]`.
      sharding: how activations lie over the devices, `parallel.activations.Activations(mesh, generation=True)` where
        the parameters lie on a mesh of several; None: nobody says.

    Raises:
      ValueError: guidance without a negative prefix, an interval that is none, an unknown solver, or fewer than one
        step.
    """
    bounds = flow.guidance_bounds(guidance_interval)
    guided = guidance not in (0.0, 1.0)
    if guided and negative is None:
        raise ValueError(
            f"guidance {guidance} needs a negative prefix: the empty prompt is the usual one; "
            "guidance=1 samples without"
        )
    return _sample(
        config,
        params,
        positive,
        negative if guided else None,
        noise,
        jnp.float32(guidance),
        jnp.asarray(bounds) if guided and bounds is not None else None,
        steps,
        shift,
        solver,
        trajectory,
        sharding,
    )


def sampler(
    config: TunaConfig, *, steps: int, shift: float, solver: str
) -> Callable[[Params, Prefix, Prefix | None, Latent, Array], Latent]:
    """`sample` as a function of arrays alone, `(params, positive, negative, noise, guidance) -> latents`, to be
    exported; without a negative side guidance has no effect."""

    def run(
        params: Params,
        positive: Prefix,
        negative: Prefix | None,
        noise: Latent,
        guidance: Float[Array, ""],
    ) -> Latent:
        how = (steps, shift, solver, False, None)
        return _sample(config, params, positive, negative, noise, guidance, None, *how)

    return run


def to_uint8(pixels: Float[Array, "*b 3"]) -> Array:
    """[-1, 1] (clamped here) -> uint8 by truncation, as the released code does."""
    return ((jnp.clip(pixels, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
