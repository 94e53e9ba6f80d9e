"""Generation without a cache: every step runs the whole sequence in both branches of guidance, like the released code.

It is the reference for `flow_sampler.sample` and `text_decoder.generate`, which must give the same results
(tests/inference/generation) in less time (`tuna-jax benchmark`).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tuna_jax import flow
from tuna_jax.config import TunaConfig
from tuna_jax.inference.generation.flow_sampler import velocity_of
from tuna_jax.inference.generation.prefix_cache import Prefix, join, last_hidden
from tuna_jax.models import tuna
from tuna_jax.models.layers import Params

Latent = Float[Array, "b t h w c"]


@functools.partial(
    jax.jit,
    static_argnames=(
        "config",
        "guidance_interval",
        "steps",
        "shift",
        "solver",
        "trajectory",
        "length",
    ),
)
def sample(
    config: TunaConfig,
    params: Params,
    positive: Prefix,
    noise: Latent,
    *,
    negative: Prefix | None = None,
    textual: Prefix | None = None,
    guidance: float | Array = 3.0,
    image_guidance: float | Array = 1.0,
    guidance_interval: tuple[float, float] = flow.EVERYWHERE,
    steps: int = 49,
    shift: float = 3.0,
    solver: str = "euler",
    trajectory: bool = False,
    length: int = 0,
) -> Array:
    """The result of `flow_sampler.sample`, without a cache.

    Args:
      config, params, positive, noise, steps, shift, solver, trajectory: see `flow_sampler.sample`.
      negative: the negative branch of guidance; None samples without guidance.
      textual: the text of `negative` without images; None samples without guidance by the images.
      guidance: scale; without effect if there is no negative prefix.
      image_guidance: scale of the images; without effect if there is no textual prefix.
      guidance_interval: see `flow_sampler.sample`; here both branches run at every time.
      length: tokens that sequences are padded to; 0: the longest prefix, the span and two more tokens.

    Raises:
      ValueError: a sequence is longer than `length`, or the interval is invalid.
    """
    branches = [branch for branch in (positive, negative, textual) if branch is not None]
    prefix = functools.reduce(join, branches)
    span = 1 + noise.shape[1] * noise.shape[2] * noise.shape[3]
    bounds = flow.guidance_bounds(guidance_interval)
    least = prefix.tokens.shape[1] + span + 2
    if length and length < least:
        raise ValueError(f"length is {length}; these sequences have up to {least} tokens")

    def velocity(x: Latent, t: Array) -> Latent:
        repeated = jnp.concatenate([x] * len(branches))
        p = _prediction(config, params, prefix, repeated, t, length or least)
        if negative is not None:
            both, image, *neither = jnp.split(p, len(branches))
            if neither:
                scales = guidance, image_guidance
                guided = flow.guided_by_image_and_text(both, image, neither[0], *scales)
            else:
                guided = flow.guided(both, image, guidance)
            if bounds is None:
                p = guided
            else:
                ends = not config.flow.predicts_clean
                guides = flow.guides(t, jnp.asarray(bounds), ends)
                p = jnp.where(guides, guided, p[: len(x)])
        return velocity_of(config, p, x, t)

    final, states = flow.integrate(
        velocity,
        config.flow.noise_scale * noise.astype(jnp.float32),
        jnp.asarray(flow.time_grid(steps, shift)),
        solver,
        euler_at_end=config.flow.predicts_clean,
    )
    return states if trajectory else final


def _prediction(
    config: TunaConfig, params: Params, prefix: Prefix, x: Latent, t: Array, length: int
) -> Latent:
    """The prediction for the noisy span behind every row's prefix, from a forward pass over all `length` tokens."""
    span = 1 + x.shape[1] * x.shape[2] * x.shape[3]
    # The token ids within the span and behind it have no effect on the span.
    tokens = jnp.pad(prefix.tokens, ((0, 0), (0, length - prefix.tokens.shape[1])))
    noisy = jnp.stack([prefix.lengths, jnp.full_like(prefix.lengths, span)], axis=-1)
    spans = jnp.concatenate([prefix.spans, noisy[:, None]], axis=1)
    latents, times = x[:, None], jnp.broadcast_to(t, (len(x), 1))
    if prefix.latents is not None:
        # Given images have one latent frame, a clip that is generated has more; what is added is in no span.
        behind = x.shape[1] - prefix.latents.shape[2]
        given = jnp.pad(prefix.latents, ((0, 0),) * 2 + ((0, behind),) + ((0, 0),) * 3)
        latents = jnp.concatenate([given, latents], axis=1)
        times = jnp.concatenate([jnp.ones(prefix.spans.shape[:2]), times], axis=1)
    # The image that is generated has no clean pixels; designs that see them do not look at its slot.
    images = None
    if prefix.images is not None:
        images = jnp.concatenate([prefix.images, jnp.zeros_like(prefix.images[:, :1])], axis=1)
    generates = jnp.arange(spans.shape[1]) == spans.shape[1] - 1
    generates = True if images is None else jnp.broadcast_to(generates, spans.shape[:2])
    out = tuna.forward(
        config, params, tokens, spans, latents, times, images=images, generates=generates
    )
    assert out.prediction is not None
    return tuna.span_predictions(config, out.prediction, noisy[:, None], x.shape[1:])[:, 0]


@functools.partial(jax.jit, static_argnames=("config", "max_new_tokens"))
def generate(
    config: TunaConfig, params: Params, prefix: Prefix, *, max_new_tokens: int
) -> Int[Array, "b n"]:
    """Greedy decoding without `eos` and without a cache: all tokens run again for each new one."""
    tokens = jnp.pad(prefix.tokens.astype(jnp.int32), ((0, 0), (0, max_new_tokens)))
    times = None if prefix.latents is None else jnp.ones(prefix.spans.shape[:2])
    rows = jnp.arange(len(tokens))

    def add(tokens: Array, step: Array) -> tuple[Array, Array]:
        # The flow head runs on no rows.
        no_rows = jnp.zeros((0,), jnp.int32)
        out = tuna.forward(
            config,
            params,
            tokens,
            prefix.spans,
            prefix.latents,
            times,
            no_rows,
            images=prefix.images,
        )
        position = prefix.lengths + step
        hidden = last_hidden(out.hidden, position)
        token = jnp.argmax(tuna.logits(config, params, hidden)[:, 0], -1).astype(jnp.int32)
        return tokens.at[rows, position].set(token), token

    return jax.lax.scan(add, tokens, jnp.arange(max_new_tokens))[1].T
