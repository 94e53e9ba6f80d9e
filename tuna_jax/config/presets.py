"""Named presets, and configs as changes of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from tuna_jax.config.latents import PixelConfig, VAEConfig, emoji_vae
from tuna_jax.config.model import (
    FlowConfig,
    FlowHeadConfig,
    LanguageConfig,
    RepresentationConfig,
    TunaConfig,
)
from tuna_jax.utils.config_parsing import override, require


def _tuna_1p5b() -> TunaConfig:
    return TunaConfig(text_chunk=256)


def _tuna_7b() -> TunaConfig:
    return TunaConfig(
        language=LanguageConfig(width=3584, heads=28, kv_heads=4, mlp=18944, tied=False),
        flow_head=FlowHeadConfig(layers=16, heads=56, kv_heads=14, mlp=18944),
        text_chunk=256,
    )


def _on_pixels(config: TunaConfig, *, encoder: bool, order: str = "raster") -> TunaConfig:
    """The same language transformer and flow head on pixels: Tuna-R with the representation encoder, Tuna-2 without."""
    return dataclasses.replace(
        config,
        vae=None,
        pixels=PixelConfig(order=order),
        flow=FlowConfig(prediction="clean", noise_scale=2.0),
        design="cascade" if encoder else "latent_only",
        mask_token=not encoder,
    )


def _tuna_r_7b() -> TunaConfig:
    """Tuna-R, `tuna_2r_pixel_7b` in the released code."""
    return _on_pixels(_tuna_7b(), encoder=True)


def _tuna_2_7b() -> TunaConfig:
    """Tuna-2, `tuna_2_pixel_7b` in the released code."""
    return _on_pixels(_tuna_7b(), encoder=False)


def _tuna_r_1p5b() -> TunaConfig:
    """Tuna-R with the parts of `tuna_1p5b`. There is no released checkpoint, so it predicts patches, not strips."""
    return _on_pixels(_tuna_1p5b(), encoder=True, order="patch")


def _tuna_2_1p5b() -> TunaConfig:
    """Tuna-2 with the parts of `tuna_1p5b`. There is no released checkpoint, so it predicts patches, not strips."""
    return _on_pixels(_tuna_1p5b(), encoder=False, order="patch")


def _tuna_smol() -> TunaConfig:
    """Initialised from SmolLM2-135M and SigLIP2 base: the smallest TUNA with a pre-trained language transformer."""
    return TunaConfig(
        representation=RepresentationConfig(width=768, layers=11, heads=12, mlp=3072),
        language=LanguageConfig(
            vocabulary=49_156,  # SmolLM2's 49,152 tokens and TUNA's four.
            width=576,
            layers=30,
            heads=9,
            kv_heads=3,
            head_dim=64,
            mlp=1536,
            rope_base=1e5,
            norm_eps=1e-5,
        ),
        flow_head=FlowHeadConfig(layers=8, heads=9, kv_heads=3, mlp=1536),
        text_chunk=256,
    )


def _tiny() -> TunaConfig:
    """Every part at its smallest useful size, for tests and compile checks."""
    return TunaConfig(
        vae=VAEConfig(
            latent_channels=8,
            encoder_width=8,
            decoder_width=8,
            blocks=1,
            latent_stats="custom",
            latent_mean=(0.0,) * 8,
            latent_std=(1.0,) * 8,
        ),
        representation=RepresentationConfig(width=32, layers=2, heads=2, mlp=64, grid=4),
        language=LanguageConfig(
            vocabulary=512, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, mlp=128
        ),
        flow_head=FlowHeadConfig(layers=2, heads=2, kv_heads=1, head_dim=32, mlp=128),
        compute_dtype="float32",
        remat="none",
    )


def _mid() -> TunaConfig:
    """For speed measurements on a machine without an accelerator (docs/performance.md); not for training."""
    return TunaConfig(
        representation=RepresentationConfig(width=384, layers=5, heads=6, mlp=1536, grid=16),
        language=LanguageConfig(
            vocabulary=8192, width=512, layers=8, heads=8, kv_heads=2, head_dim=64, mlp=2048
        ),
        flow_head=FlowHeadConfig(layers=8, heads=8, kv_heads=2, mlp=2048),
        compute_dtype="float32",
        remat="none",
        unroll=True,
        text_chunk=64,
    )


def _emoji() -> TunaConfig:
    """The demo's model: images of 64x64 pixels as 4x4 latents of 16 channels, small enough to train on a laptop."""
    return TunaConfig(
        vae=emoji_vae(),
        representation=RepresentationConfig(width=144, layers=2, heads=3, mlp=384, grid=4),
        language=LanguageConfig(
            vocabulary=640, width=144, layers=4, heads=3, kv_heads=3, head_dim=48, mlp=384
        ),
        flow_head=FlowHeadConfig(layers=2, heads=3, kv_heads=3, head_dim=48, mlp=384),
        compute_dtype="float32",
        remat="none",
        unroll=True,
    )


def _tiny_pixels(encoder: bool) -> TunaConfig:
    return _on_pixels(_tiny(), encoder=encoder)


def _mid_pixels(encoder: bool) -> TunaConfig:
    return _on_pixels(_mid(), encoder=encoder)


def _emoji_pixels(encoder: bool) -> TunaConfig:
    """The demo's model on pixels: images of 64x64 pixels as 4x4 patches."""
    return _on_pixels(_emoji(), encoder=encoder, order="patch")


PRESETS = {
    "tiny": _tiny,
    "mid": _mid,
    "emoji": _emoji,
    "tuna_smol": _tuna_smol,
    "tuna_1p5b": _tuna_1p5b,
    "tuna_7b": _tuna_7b,
    "tuna_r_1p5b": _tuna_r_1p5b,
    "tuna_r_7b": _tuna_r_7b,
    "tuna_2_1p5b": _tuna_2_1p5b,
    "tuna_2_7b": _tuna_2_7b,
    "tuna_r_tiny": functools.partial(_tiny_pixels, True),
    "tuna_2_tiny": functools.partial(_tiny_pixels, False),
    "tuna_r_mid": functools.partial(_mid_pixels, True),
    "tuna_2_mid": functools.partial(_mid_pixels, False),
    "tuna_r_emoji": functools.partial(_emoji_pixels, True),
    "tuna_2_emoji": functools.partial(_emoji_pixels, False),
}


def preset(name: str) -> TunaConfig:
    """The preset `name`.

    Raises:
      ValueError: the name is unknown; the names of all presets are listed.
    """
    require(name in PRESETS, f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()


def from_dict(values: Mapping[str, Any]) -> TunaConfig:
    """A config from nested overrides of a preset.

    Args:
      values: field names of `TunaConfig` to values or nested mappings; 'preset' (default 'tiny') names the preset.

    Raises:
      ValueError: an unknown key (named, with the nearest known key), a value of the wrong type, or values that
        contradict each other.
    """
    rest = dict(values)
    return override(preset(rest.pop("preset", "tiny")), rest, "model")
