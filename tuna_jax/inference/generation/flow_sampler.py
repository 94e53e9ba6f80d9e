"""Images and clips from noise: guided flow sampling on a cached prefix (model.md section 9)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tuna_jax import flow
from tuna_jax.config import TunaConfig
from tuna_jax.inference.generation.prefix_cache import (
    Cache,
    Prefix,
    join,
    prefill,
    prepared,
    span_prediction,
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
    textual: Prefix | None = None,
    image_guidance: Array | None = None,
) -> Array:
    branches = [prefix for prefix in (positive, negative, textual) if prefix is not None]
    scales = (guidance,) if image_guidance is None else (guidance, image_guidance)
    with use_sharding(sharding):
        velocity = _velocity(config, params, branches, noise, scales, bounds)
        grid = jnp.asarray(flow.time_grid(steps, shift))
        start = config.flow.noise_scale * noise.astype(jnp.float32)
        at_end = config.flow.predicts_clean
        final, states = flow.integrate(velocity, start, grid, solver, euler_at_end=at_end)
        return states if trajectory else final


def _velocity(
    config: TunaConfig,
    params: Params,
    branches: Sequence[Prefix],
    noise: Latent,
    scales: tuple[Array, ...],
    bounds: Float[Array, " 2"] | None,
) -> flow.Velocity:
    """The velocity field on the cached prefixes, guided within `bounds` (None: at all times)."""
    params = prepared(config, params)
    positive, prefix = branches[0], functools.reduce(join, branches)
    span = 1 + noise.shape[1] * noise.shape[2] * noise.shape[3]
    cache, _ = prefill(config, params, prefix, prefix.tokens.shape[1] + span, with_flow_head=True)
    # The positive branch's rows come first. They are sliced once here instead of at every step, like the layers.
    positive_cache = jax.tree.map(lambda leaf: leaf[:, : len(noise)], cache)
    if unstacks(config):
        cache, positive_cache = unstack((cache, positive_cache))

    def guided(x: Latent, t: Array) -> Latent:
        return guided_velocity(config, params, cache, prefix.lengths, x, t, *scales)

    if bounds is None:
        return guided

    def unguided(x: Latent, t: Array) -> Latent:
        p = span_prediction(config, params, positive_cache, positive.lengths, x, t)
        # float32 is the dtype of `guided`, whose guidance scale is float32.
        return velocity_of(config, p.astype(jnp.float32), x, t)

    ends = not config.flow.predicts_clean
    return lambda x, t: jax.lax.cond(flow.guides(t, bounds, ends), guided, unguided, x, t)


def guided_velocity(
    config: TunaConfig,
    params: Params,
    cache: Cache,
    lengths: Int[Array, " prefixes"],
    x: Latent,
    t: Float[Array, "*rows"],
    guidance: Float[Array, "*rows"],
    image_guidance: Float[Array, ""] | None = None,
) -> Latent:
    """The velocity of the latents on cached prefixes: guided if there are twice or three times as many prefixes as
    latents.

    Args:
      config, params: the model.
      cache, lengths: of the prefixes: those of the positive branch, of the negative one, and of that without images.
      x: the latents.
      t, guidance: time and guidance scale, of all rows or of each.
      image_guidance: guidance scale of the images that are given, for three branches.
    """
    p = span_prediction(config, params, cache, lengths, x, t)
    rows = len(x)
    if len(lengths) > rows:
        scale = guidance.reshape(guidance.shape + (1,) * (x.ndim - 1) * guidance.ndim)
        if image_guidance is None:
            p = flow.guided(p[:rows], p[rows:], scale)
        else:
            parts = p[:rows], p[rows : 2 * rows], p[2 * rows :]
            p = flow.guided_by_image_and_text(*parts, scale, image_guidance)
    return velocity_of(config, p, x, t)


def velocity_of(config: TunaConfig, prediction: Latent, x: Latent, t: Array) -> Latent:
    """The velocity at state x and time t that a prediction means (`config.flow`)."""
    if not config.flow.predicts_clean:
        return prediction
    return flow.velocity_from_clean(prediction, x, t, config.flow.min_remaining)


def sample(
    config: TunaConfig,
    params: Params,
    positive: Prefix,
    noise: Latent,
    *,
    negative: Prefix | None = None,
    textual: Prefix | None = None,
    guidance: float = 3.0,
    image_guidance: float = 1.0,
    guidance_interval: Sequence[float] = flow.EVERYWHERE,
    steps: int = 49,
    shift: float = 3.0,
    solver: str = "euler",
    trajectory: bool = False,
    sharding: LogicalSharding | None = None,
) -> Array:
    """Samples latents for the prompts, with one compiled program per shape.

    Args:
      config, params: the model.
      positive: tokens up to and including `<boi>` of the span to generate, with clean source slots for editing.
      noise: standard normal, `[B, T, h, w, C]`; times `config.flow.noise_scale` it is the state at t = 0.
      negative: the negative branch of guidance (a negative or empty prompt); required unless guidance is 0 or 1.
      textual: the text of `negative` without the images that are given (its slots are unused); required unless
        `image_guidance` is 1.
      guidance: scale g of `p_neg + g (p_pos - p_neg)`, p being what the model predicts; 0 and 1 sample without
        guidance, only with the positive branch.
      image_guidance: scale g_i of the images that are given: with another one than 1 there are three branches, and what
        is predicted is `p_text + g_i (p_neg - p_text) + g (p_pos - p_neg)` for every g
        (`flow.guided_by_image_and_text`).
      guidance_interval: (low, high), the times of the grid at which guidance is applied, both ends included; without
        them for a model that predicts the clean image (`FlowConfig`). At other times only the positive branch runs,
        for half the work. All intervals except (0, 1) share one program.
      steps: solver steps; the time grid has one point more.
      shift: `a` of the time grid's map, see `flow.time_grid`.
      solver: 'euler' or 'heun'; of a model that predicts the clean image, Heun's last step is one of Euler's.
      trajectory: whether to return the states after every step, `[steps, B, T, h, w, C]`, instead of the last one.
      sharding: how activations are sharded: `parallel.activation_sharding.Activations(mesh, generation=True)` if the
        parameters are sharded over a mesh of several devices; None leaves it to the compiler.

    Returns:
      Latents, float32 `[B, T, h, w, C]`.

    Raises:
      ValueError: guidance has no negative prefix, or no textual one, the interval is invalid, the solver is unknown, or
        there is less than one step.
    """
    bounds = flow.guidance_bounds(guidance_interval)
    three = image_guidance != 1.0
    guided = three or guidance not in (0.0, 1.0)
    if three and textual is None:
        raise ValueError(
            f"image_guidance {image_guidance} requires a prefix without the images, with the text of the negative one; "
            f"image_guidance=1 samples without"
        )
    if guided and negative is None:
        raise ValueError(
            f"guidance {guidance} requires a negative prefix, usually that of the empty prompt; guidance=1 samples "
            f"without"
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
        textual if three else None,
        jnp.float32(image_guidance) if three else None,
    )


def sampler(
    config: TunaConfig, *, steps: int, shift: float, solver: str
) -> Callable[[Params, Prefix, Prefix | None, Latent, Array], Latent]:
    """`sample` as a function of arrays, `(params, positive, negative, noise, guidance) -> latents`, for export.

    Without a negative prefix guidance has no effect.
    """

    def run(
        params: Params,
        positive: Prefix,
        negative: Prefix | None,
        noise: Latent,
        guidance: Float[Array, ""],
    ) -> Latent:
        settings = (steps, shift, solver, False, None)
        return _sample(config, params, positive, negative, noise, guidance, None, *settings)

    return run


def to_uint8(pixels: Float[Array, "*b 3"]) -> Array:
    """Pixels in [-1, 1], clamped, as uint8 by truncation like the released code."""
    return ((jnp.clip(pixels, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
