"""The losses of batches that are not trained on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from tuna_jax import flow
from tuna_jax.config import TunaConfig
from tuna_jax.models import tuna
from tuna_jax.training.config import TimeSettings
from tuna_jax.training.train_program import encode, image_patches

Sums = dict[str, jax.Array]
"""Per row of the batch, float32 `[B]`: `flow_sum`, `flow_count`, `text_sum`, `text_count`; a loss is sum / count."""


@functools.lru_cache(maxsize=1)
def make_evaluation(config: TunaConfig, time: TimeSettings, vae_dtype: str) -> Callable[..., Sums]:
    """A jitted function `(params, batch, vae_params, key) -> Sums`: a training step's losses without an update.

    Times and noise are derived from the key, so the same key gives every checkpoint the same task. Pixels are encoded
    by the VAE, and moments are replaced by their mean. Equal arguments give the same function, compiled once.

    Args:
      config: the model.
      time, vae_dtype: those of the run's settings.
    """

    patches = image_patches(config)

    @functools.partial(jax.jit, static_argnames=("flow_rows", "text_rows"))
    def evaluate(
        params: Any,
        batch: Mapping[str, Any],
        vae_params: Any,
        key: jax.Array,
        *,
        flow_rows: int | None = None,
        text_rows: int | None = None,
    ) -> Sums:
        time_key, noise_key, vae_key = jax.random.split(key, 3)
        if patches is not None and "pixels" in batch:
            batch = {**batch, "images": patches(batch["pixels"])}
        if "pixels" in batch and "latents" not in batch:
            latents = encode(
                config.space, jnp.dtype(vae_dtype), vae_params, batch["pixels"], vae_key
            )
            batch = {**batch, "latents": latents}
        elif "moments" in batch:
            batch = {**batch, "latents": batch["moments"][:, :, 0].astype(jnp.float32)}
        mu = flow.shift_mu() if time.shift else None
        t = flow.sample_time(
            time_key,
            batch["is_target"].shape,
            mean=time.mean,
            std=time.std,
            mu=mu,
        )
        noise = jax.random.normal(noise_key, batch["latents"].shape, jnp.float32)
        metrics = tuna.loss(
            config, params, batch, noise, t, flow_rows=flow_rows, text_rows=text_rows
        )[1]
        return {
            name: metrics[f"{name}"]
            for name in ("flow_sum", "flow_count", "text_sum", "text_count")
        }

    return evaluate
