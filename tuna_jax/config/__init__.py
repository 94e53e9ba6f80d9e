"""Configuration of a model: frozen dataclasses, named presets, and checks.

All models of the family share the same code. A preset is a starting point; `from_dict` applies overrides to it and
rejects unknown keys, so that a typo in an experiment is an error.
"""

from tuna_jax.config.latents import (
    LATENT_STATS,
    PIXEL_ORDERS,
    PixelConfig,
    VAEConfig,
    emoji_vae,
    wan21_vae,
)
from tuna_jax.config.model import (
    ACTIVATIONS,
    ATTENTION_BACKENDS,
    DESIGNS,
    ENCODERS,
    PREDICTIONS,
    REMAT_POLICIES,
    TORCH_FLOAT32_EPS,
    DINOv3Config,
    FlowConfig,
    FlowHeadConfig,
    LanguageConfig,
    RepresentationConfig,
    TunaConfig,
)
from tuna_jax.config.presets import PRESETS, from_dict, preset

__all__ = [
    "ACTIVATIONS",
    "ATTENTION_BACKENDS",
    "DESIGNS",
    "ENCODERS",
    "LATENT_STATS",
    "PIXEL_ORDERS",
    "PREDICTIONS",
    "PRESETS",
    "REMAT_POLICIES",
    "TORCH_FLOAT32_EPS",
    "DINOv3Config",
    "FlowConfig",
    "FlowHeadConfig",
    "LanguageConfig",
    "PixelConfig",
    "RepresentationConfig",
    "TunaConfig",
    "VAEConfig",
    "emoji_vae",
    "from_dict",
    "preset",
    "wan21_vae",
]
