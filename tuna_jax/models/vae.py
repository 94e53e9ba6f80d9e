"""The causal video VAEs of Wan 2.2 (model.md section 1) and Wan 2.1: pixels to latents and back.

    pixels [B, 1+4k, H, W, 3] -> space-to-depth 2x2 -> encoder (8x in space, 4x in time) -> 1x1x1 conv -> mu, log_var
    latent [B, 1+k, H/16, W/16, C] -> 1x1x1 conv -> decoder -> depth-to-space 2x2 -> pixels

Wan 2.1 has the space-to-depth at the other end: its convolutions take pixels, its latents have 16 channels at every 8x8
pixels, and 2x2 of them are one latent position of the model, with 64 channels. Only `encode_moments` and `decode` know
of that: the encoder of representations, flow, noise and flow head see one token per 16x16 pixels with either.

    pixels [B, 1+4k, H, W, 3] -> encoder -> 1x1x1 conv -> mu, log_var [B, 1+k, H/8, W/8, 16]
    -> 2x2 patches [B, 1+k, H/16, W/16, 64]; the decoder inverts that

Everything is causal in time, so one code path serves a whole clip at once (fast) and a clip in
chunks (low memory): every layer takes and returns a history (`vae_layers.py`). A run over a whole clip drops the
returned history, and XLA removes its computation. Large frames are also split in space (`vae_tiles.py`).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, UInt8

from tuna_jax.config import VAEConfig
from tuna_jax.models import layers
from tuna_jax.models.layers import Params
from tuna_jax.models.pixels import patchify, unpatchify
from tuna_jax.models.vae_layers import (
    CausalConv,
    DownLevel,
    Head,
    History,
    Middle,
    UpLevel,
    Video,
    run_stack,
)
from tuna_jax.models.vae_tiles import TILE_ABOVE, Tiling, in_tiles, tiling

# A slice chooses the parts of a stack to run: all of them, or with tiles those that see a tile or the whole frame.
_ALL = slice(None)

# Clips of up to this many latent frames are processed at once; longer ones in chunks of time, to save memory.
_WHOLE = 5


class Encoder(nnx.Module):
    """Space-to-depth pixels `[B, F, H/2, W/2, 12]` -> features `[B, T, H/16, W/16, 2 C]`.

    Wan 2.1: pixels `[B, F, H, W, 3]` -> features `[B, T, H/8, W/8, 2 C]`.
    """

    TILED, WHOLE = slice(None, -2), slice(-2, None)

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        sizes = config.encoder_levels
        self.conv_in = CausalConv(3 * config.pixel_patch**2, sizes[0][0], (3, 3, 3), rngs=rngs)
        self.levels = nnx.List([])
        for i, (inputs, outputs) in enumerate(sizes):
            last = i == len(sizes) - 1
            time, space = 1 if last or not config.halve_time[i] else 2, 1 if last else 2
            self.levels.append(
                DownLevel(
                    inputs, outputs, config.blocks, time, space, residual=config.residual, rngs=rngs
                )
            )
        self.middle = Middle(sizes[-1][1], rngs=rngs)
        self.head = Head(sizes[-1][1], 2 * config.vae_channels, rngs=rngs)

    def __call__(
        self, x: Video, history: History = None, selected: slice = _ALL
    ) -> tuple[Video, History]:
        levels = [(f"level{i}", level) for i, level in enumerate(self.levels)]
        parts = [("conv_in", self.conv_in), *levels, ("middle", self.middle), ("head", self.head)]
        return run_stack(parts[selected], x, history)


class Decoder(nnx.Module):
    """Latents `[B, T, h, w, C]` -> space-to-depth pixels `[B, F, 8h, 8w, 12]`, for Wan 2.1 pixels `[.., 3]`."""

    WHOLE, TILED = slice(None, 2), slice(2, None)

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        sizes, blocks = config.decoder_levels, config.blocks + 1
        double_time = config.halve_time[::-1]
        self.conv_in = CausalConv(config.vae_channels, sizes[0][0], (3, 3, 3), rngs=rngs)
        self.middle = Middle(sizes[0][0], rngs=rngs)
        self.levels = nnx.List([])
        for i, (inputs, outputs) in enumerate(sizes):
            last = i == len(sizes) - 1
            time, space = 1 if last or not double_time[i] else 2, 1 if last else 2
            self.levels.append(
                UpLevel(inputs, outputs, blocks, time, space, residual=config.residual, rngs=rngs)
            )
        self.head = Head(sizes[-1][1], 3 * config.pixel_patch**2, rngs=rngs)

    def __call__(
        self, x: Video, history: History = None, selected: slice = _ALL
    ) -> tuple[Video, History]:
        levels = [(f"level{i}", level) for i, level in enumerate(self.levels)]
        parts = [("conv_in", self.conv_in), ("middle", self.middle), *levels, ("head", self.head)]
        return run_stack(parts[selected], x, history)


def space_to_depth(pixels: Video) -> Video:
    """`[B, F, H, W, c]` -> `[B, F, H/2, W/2, 4 c]`; channel order: colour, column offset, row offset."""
    batch, frames, height, width, colours = pixels.shape
    x = pixels.reshape(batch, frames, height // 2, 2, width // 2, 2, colours)
    return x.transpose(0, 1, 2, 4, 6, 5, 3).reshape(
        batch, frames, height // 2, width // 2, 4 * colours
    )


def depth_to_space(x: Video) -> Video:
    """The inverse of `space_to_depth`."""
    batch, frames, height, width, channels = x.shape
    x = x.reshape(batch, frames, height, width, channels // 4, 2, 2)
    return x.transpose(0, 1, 2, 6, 3, 5, 4).reshape(
        batch, frames, 2 * height, 2 * width, channels // 4
    )


class WanVAE(nnx.Module):
    """Encoder, decoder and the two 1x1x1 convolutions between them and the latent."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        channels = config.vae_channels
        self.encoder = Encoder(config, rngs=rngs)
        self.moments = CausalConv(2 * channels, 2 * channels, (1, 1, 1), rngs=rngs)
        self.latent_in = CausalConv(channels, channels, (1, 1, 1), rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)


@functools.cache
def _template(config: VAEConfig) -> tuple[Any, Params]:
    return layers.split(nnx.eval_shape(lambda: WanVAE(config, rngs=nnx.Rngs(0))))


def _structure(config: VAEConfig) -> tuple[Any, Params]:
    """Graphdef and shapes, traced once for all VAEs of one size: statistics and flags do not change them."""
    zeros = (0.0,) * config.vae_channels
    sizes = dataclasses.replace(
        config,
        latent_stats="custom",
        latent_mean=zeros,
        latent_std=zeros,
        consistent_posterior=False,
        by_frame=False,
    )
    return _template(sizes)


def _graphdef(config: VAEConfig) -> Any:
    return _structure(config)[0]


def shapes(config: VAEConfig, image_only: bool = False) -> Params:
    """Shapes and dtypes of what `init` returns, as `jax.ShapeDtypeStruct`."""
    whole = _structure(config)[1]
    only = jax.tree_util.tree_map_with_path
    return jax.eval_shape(lambda tree: only(_last_tap, tree) if image_only else tree, whole)


def init(config: VAEConfig, key: Array, image_only: bool = False) -> Params:
    """Fresh parameters, float32.

    Args:
      config: sizes.
      key: PRNG key.
      image_only: keep only what a single frame uses, the last time tap of every causal kernel. The same functions run
        on these parameters for T = 1; `inflate` turns them into those of a video VAE.
    """
    params = layers.split(WanVAE(config, rngs=nnx.Rngs(key)))[1]
    return jax.tree_util.tree_map_with_path(_last_tap, params) if image_only else params


def _last_tap(path: Any, x: Array) -> Array:
    if x.ndim != 5:
        return x
    if "time_conv" in jax.tree_util.keystr(path):
        # Images never use these. As identities they drop and repeat frames, a good start for a video VAE.
        inputs, outputs = x.shape[3:]
        return jnp.tile(jnp.eye(inputs, dtype=x.dtype), (1, outputs // inputs))[None, None, None]
    # The initialisation counted all taps as fan-in and one is left: restore the variance.
    return x[-1:] * x.shape[0] ** 0.5


def inflate(config: VAEConfig, image_params: Params) -> Params:
    """Image-only parameters -> full ones: missing earlier time taps become zero, so images are encoded to the same
    bits."""

    def pad(full: jax.ShapeDtypeStruct, leaf: Array) -> Array:
        missing = full.shape[0] - leaf.shape[0]
        return jnp.pad(leaf, [(missing, 0)] + [(0, 0)] * (leaf.ndim - 1)) if missing else leaf

    return jax.tree.map(pad, shapes(config), image_params)


def for_frames(config: VAEConfig, params: Params, frames: int) -> Params:
    """Parameters for clips of this many frames: image-only ones are inflated if necessary."""
    return inflate(config, params) if frames > 1 and not config.by_frame else params


def encode_moments(
    config: VAEConfig,
    params: Params,
    pixels: Video,
    *,
    chunked: bool = False,
    tiles: Tiling | None = None,
) -> tuple[Video, Video]:
    """Pixels -> (mu, log_var) before normalisation.

    Args:
      config: sizes.
      params: as from `init`.
      pixels: `[B, F, H, W, 3]` in [-1, 1]; F = 1 + 4k, H and W multiples of 16 (else ValueError).
      chunked: scan over chunks of four frames in constant memory instead of running the whole clip at once; the numbers
        are the same.
      tiles: how frames are split in space; None: they are not split.

    Returns:
      mu and log_var, each `[B, 1+k, H/16, W/16, C]`; with `latent_patch` the channels are those of `pixels.patchify`.
    """
    config.latent_shape(*pixels.shape[1:4])
    if config.by_frame and pixels.shape[1] > 1:
        moments = encode_moments(config, params, _as_images(pixels), tiles=tiles)
        mu, log_var = (_as_clips(x, pixels.shape[1]) for x in moments)
        return mu, log_var
    model = layers.merge(_graphdef(config), params)
    x = space_to_depth(pixels) if config.pixel_patch == 2 else pixels
    size = config.temporal_factor
    if tiles is not None:
        run = functools.partial(
            _run, model.encoder, size=size, chunked=chunked, selected=Encoder.TILED
        )
        features = in_tiles(run, x, tiles, config.stack_factor, 1)
        features = _run(model.encoder, features, 1, True, Encoder.WHOLE)
    else:
        features = _run(model.encoder, x, size, chunked)
    mu, log_var = jnp.split(model.moments(features)[0], 2, axis=-1)
    if config.latent_patch > 1:
        mu, log_var = (patchify(x, config.latent_patch) for x in (mu, log_var))
    return mu, log_var


def _as_images(x: Video) -> Video:
    """Every frame as a clip of one frame."""
    return x.reshape(-1, 1, *x.shape[2:])


def _as_clips(x: Video, frames: int) -> Video:
    """The inverse of `_as_images`."""
    return x.reshape(-1, frames, *x.shape[2:])


def _run(part: Any, x: Video, size: int, chunked: bool, selected: slice = _ALL) -> Video:
    """The selected parts of a causal stack on a whole clip, or on chunks of `size` frames one after another."""
    if chunked and x.shape[1] > 1:
        return _in_chunks(part, x, size, selected)
    return part(x, None, selected)[0]


def _in_chunks(part: Any, x: Video, size: int, selected: slice) -> Video:
    """Runs a causal stack on the first frame, then scans over chunks of `size` frames with its history."""
    first, history = part(x[:, :1], None, selected)
    graphdef, state = nnx.split(part)
    rest = x[:, 1:].reshape(x.shape[0], -1, size, *x.shape[2:])

    def step(history: History, chunk: Video) -> tuple[History, Video]:
        y, history = nnx.merge(graphdef, state)(chunk, history, selected)
        return history, y

    _, outputs = jax.lax.scan(step, history, jnp.moveaxis(rest, 1, 0))
    outputs = jnp.moveaxis(outputs, 0, 1)
    outputs = outputs.reshape(x.shape[0], -1, *outputs.shape[3:])
    return jnp.concatenate([first, outputs], axis=1)


def _statistics(config: VAEConfig) -> tuple[Array, Array]:
    """Mean and standard deviation of every channel of the model's latents; all latents of a patch share them."""
    mean, std = (jnp.asarray(values, jnp.float32) for values in config.statistics)
    times = config.latent_patch**2
    return jnp.tile(mean, times), jnp.tile(std, times)


def encode(
    config: VAEConfig,
    params: Params,
    pixels: Video,
    *,
    chunked: bool = False,
    tiles: Tiling | None = None,
) -> tuple[Video, Video]:
    """Pixels -> (normalised mu, raw log_var); arguments as for `encode_moments`."""
    mu, log_var = encode_moments(config, params, pixels, chunked=chunked, tiles=tiles)
    mean, std = _statistics(config)
    return (mu - mean) / std, log_var


def posterior_std(config: VAEConfig, log_var: Video) -> Video:
    """Standard deviation of the posterior in normalised latents; divided by `latent_std` only if
    `consistent_posterior`."""
    std = jnp.exp(0.5 * jnp.clip(log_var, -30.0, 20.0))
    return std / _statistics(config)[1] if config.consistent_posterior else std


def posterior(
    config: VAEConfig,
    params: Params,
    clips: UInt8[Any, "n f h w 3"],
    dtype: Any = jnp.float32,
    tile_above: int = TILE_ABOVE,
) -> tuple[Video, Video]:
    """Bytes -> the posterior's (mean, standard deviation) in normalised latents, float32.

    Args:
      config: sizes.
      params: as from `init`; image-only ones are accepted, and count as zero at the earlier time taps.
      clips: F = 1 + 4k; an image is a clip of one frame. A long clip is processed in chunks of time.
      dtype: of the convolutions.
      tile_above: frames of more pixels than this are processed in tiles.
    """
    params = for_frames(config, params, clips.shape[1])
    pixels = (jnp.asarray(clips, jnp.float32) / 127.5 - 1.0).astype(dtype)
    chunked = clips.shape[1] > config.temporal_factor * _WHOLE
    tiles = tiling(clips.shape[2], clips.shape[3], tile_above)
    mu, log_var = encode_moments(config, params, pixels, chunked=chunked, tiles=tiles)
    mean, std = _statistics(config)
    mu, log_var = mu.astype(jnp.float32), log_var.astype(jnp.float32)
    return (mu - mean) / std, posterior_std(config, log_var)


def sample_posterior(config: VAEConfig, mu: Video, log_var: Video, noise: Video) -> Video:
    """A latent from the posterior: `mu + std * noise`, mu normalised, noise standard normal."""
    return mu + posterior_std(config, log_var) * noise


def decode(
    config: VAEConfig,
    params: Params,
    latents: Video,
    *,
    chunked: bool = False,
    tiles: Tiling | None = None,
) -> Video:
    """Normalised latents `[B, T, h, w, C]` -> pixels `[B, 1 + 4 (T - 1), 16 h, 16 w, 3]`, not clamped.

    Arguments as for `encode_moments`; `chunked` processes one latent frame at a time.
    """
    if config.by_frame and latents.shape[1] > 1:
        images = decode(config, params, _as_images(latents), tiles=tiles)
        return _as_clips(images, latents.shape[1])
    mean, std = _statistics(config)
    model = layers.merge(_graphdef(config), params)
    x = latents * std + mean
    if config.latent_patch > 1:
        x = unpatchify(x, config.latent_patch)
    x = model.latent_in(x)[0]
    if tiles is not None:
        x = _run(model.decoder, x, 1, True, Decoder.WHOLE)
        run = functools.partial(
            _run, model.decoder, size=1, chunked=chunked, selected=Decoder.TILED
        )
        y = in_tiles(run, x, tiles, 1, config.stack_factor)
    else:
        y = _run(model.decoder, x, 1, chunked)
    return depth_to_space(y) if config.pixel_patch == 2 else y
