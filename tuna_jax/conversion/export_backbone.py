"""Writes one component of a TUNA as the backbone that it came from: weights, and the config of its library.

The inverse of `pretrained_backbones.to_ours`, for transformers (Qwen2.5, SigLIP) and diffusers (the Wan VAE).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tuna_jax.config import TunaConfig
from tuna_jax.conversion import convert_checkpoint, pretrained_backbones, weight_map
from tuna_jax.conversion.convert_checkpoint import Specs
from tuna_jax.conversion.readers import StateDict


def to_backbone(
    config: TunaConfig,
    params: StateDict,
    layout: str,
    open_sink: Callable[[Specs], Any],
    *,
    dtype: str = "",
    progress: bool = False,
    check_weights: bool = True,
) -> int:
    """Writes one component of our parameters in the layout of its backbone; returns the number of tensors.

    Args:
      config: the model.
      params: our parameters by dotted name.
      layout: 'qwen' (the language transformer), 'siglip' (the representation encoder with its patch embedding), 'wan'
        or 'diffusers' (the VAE).
      open_sink, dtype, progress, check_weights: as in `convert_checkpoint.to_torch`.

    Raises:
      ConversionError: parameters of this component are missing; the message lists all.
    """
    rows = pretrained_backbones.rows_of(layout, config)
    if layout == "siglip":
        rows = weight_map.representation_rows(config)
    return convert_checkpoint.write_rows(
        rows,
        {},
        params,
        open_sink,
        dtype=dtype,
        progress=progress,
        check_weights=check_weights,
    )


def backbone_config(config: TunaConfig, layout: str) -> dict[str, Any]:
    """The `config.json` for loading a component with transformers or diffusers; empty for 'wan'."""
    if layout == "qwen":
        sizes = config.language
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "vocab_size": sizes.vocabulary,
            "hidden_size": sizes.width,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads,
            "head_dim": sizes.head_dim,
            "intermediate_size": sizes.mlp,
            "rope_theta": sizes.rope_base,
            "rms_norm_eps": sizes.norm_eps,
            "tie_word_embeddings": sizes.tied,
        }
    if layout == "siglip":
        sizes = config.representation
        return {
            "architectures": ["SiglipVisionModel"],
            "model_type": "siglip_vision_model",
            "hidden_size": sizes.width,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "intermediate_size": sizes.mlp,
            "layer_norm_eps": sizes.norm_eps,
            "hidden_act": "gelu_pytorch_tanh",
            "image_size": sizes.grid,
            "patch_size": 1,
            "num_channels": config.space.latent_channels,
            "vision_use_head": False,
        }
    if layout == "diffusers":
        sizes = config.video_vae
        mean, std = sizes.statistics
        return {
            "_class_name": "AutoencoderKLWan",
            "base_dim": sizes.encoder_width,
            "decoder_base_dim": sizes.decoder_width,
            "z_dim": sizes.latent_channels,
            "dim_mult": list(sizes.multipliers),
            "num_res_blocks": sizes.blocks,
            "temperal_downsample": list(sizes.halve_time),
            "attn_scales": [],
            "dropout": 0.0,
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_spatial": sizes.spatial_factor,
            "scale_factor_temporal": sizes.temporal_factor,
            "latents_mean": list(mean),
            "latents_std": list(std),
        }
    return {}
