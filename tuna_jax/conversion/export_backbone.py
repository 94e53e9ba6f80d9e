"""Writes one component of a TUNA as the backbone that it came from: weights, and the config of its library.

The inverse of `pretrained_backbones.to_ours`, for transformers (Qwen2.5, SigLIP, DINOv3) and diffusers (the Wan VAEs).
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
      layout: 'qwen' (the language transformer), 'siglip' or 'dinov3' (the representation encoder with its patch
        embedding; it must be the model's `representation.kind`), 'wan' or 'diffusers' (the VAE).
      open_sink, dtype, progress, check_weights: as in `convert_checkpoint.to_torch`.

    Raises:
      ConversionError: parameters of this component are missing; the message lists all.
    """
    rows = pretrained_backbones.rows_of(layout, config)
    if layout in pretrained_backbones.VISION:
        rows = weight_map.representation_rows(config, "vision_model." if layout == "siglip" else "")
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
    if layout in pretrained_backbones.VISION:
        side, channels = weight_map.patch_of(config)
        image = {
            "image_size": config.representation.grid * side,
            "patch_size": side,
            "num_channels": channels,
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
            "vision_use_head": False,
        } | image
    if layout == "dinov3":
        sizes, own = config.representation, config.representation.dinov3
        return {
            "architectures": ["DINOv3ViTModel"],
            "model_type": "dinov3_vit",
            "hidden_size": sizes.width,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "intermediate_size": sizes.mlp,
            "layer_norm_eps": sizes.norm_eps,
            "hidden_act": own.activation,
            "num_register_tokens": own.registers,
            "rope_theta": own.rope_base,
            "layerscale_value": own.layer_scale,
            "query_bias": own.query_bias,
            "key_bias": own.key_bias,
            "value_bias": own.value_bias,
            "proj_bias": own.out_bias,
            "mlp_bias": own.mlp_bias,
            "use_gated_mlp": own.gated,
        } | image
    if layout == "diffusers":
        sizes = config.video_vae
        mean, std = sizes.statistics
        return {
            "_class_name": "AutoencoderKLWan",
            "base_dim": sizes.encoder_width,
            "decoder_base_dim": sizes.decoder_width,
            "z_dim": sizes.vae_channels,
            "dim_mult": list(sizes.multipliers),
            "num_res_blocks": sizes.blocks,
            "temperal_downsample": list(sizes.halve_time),
            "attn_scales": [],
            "dropout": 0.0,
            "is_residual": sizes.residual,
            "in_channels": 3 * sizes.pixel_patch**2,
            "out_channels": 3 * sizes.pixel_patch**2,
            "patch_size": sizes.pixel_patch if sizes.pixel_patch > 1 else None,
            "scale_factor_spatial": sizes.spatial_factor // sizes.latent_patch,
            "scale_factor_temporal": sizes.temporal_factor,
            "latents_mean": list(mean),
            "latents_std": list(std),
        }
    return {}


def preprocessor_config(config: TunaConfig, layout: str) -> dict[str, Any]:
    """The `preprocessor_config.json` of an exported vision encoder: its patch embedding takes pixels in [-1, 1].

    Empty for models on latents and for other layouts.
    """
    if layout not in pretrained_backbones.VISION or config.pixels is None:
        return {}
    return {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
