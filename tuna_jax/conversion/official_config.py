"""The config of a model from the one that the released PyTorch code writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuna_jax.config import (
    FlowConfig,
    FlowHeadConfig,
    LanguageConfig,
    PixelConfig,
    RepresentationConfig,
    TunaConfig,
    VAEConfig,
)


def _space(
    official: Mapping[str, Any],
) -> tuple[VAEConfig | None, PixelConfig | None, FlowConfig]:
    """Latents of a VAE (TUNA), or pixels (Tuna-R and Tuna-2), and the flow on them."""
    wan = official.get("vae")
    if wan is None:
        noise = official["noise_scheduler"]
        pixels = PixelConfig(patch=official["tuna_model"]["patch_size"], order="raster")
        flow = FlowConfig(
            prediction="clean", noise_scale=noise["noise_scale"], min_remaining=noise["t_eps"]
        )
        return None, pixels, flow
    vae = VAEConfig(
        latent_channels=wan["z_dim"],
        encoder_width=wan["dim"],
        decoder_width=wan["dec_dim"],
        multipliers=tuple(wan["dim_mult"]),
        blocks=wan["num_res_blocks"],
        halve_time=tuple(wan["temperal_downsample"]),
        latent_stats="custom",
        latent_mean=tuple(wan["mean"]),
        latent_std=tuple(wan["std"]),
    )
    return vae, None, FlowConfig()


def _representation(siglip: Mapping[str, Any], model: Mapping[str, Any]) -> RepresentationConfig:
    dropped = model["siglip_feature_layer"] + 1  # -2 keeps all layers except the last.
    return RepresentationConfig(
        width=siglip["hidden_size"],
        layers=siglip["num_hidden_layers"] + dropped if dropped < 0 else dropped,
        heads=siglip["num_attention_heads"],
        mlp=siglip["intermediate_size"],
        grid=model["siglip_image_size"] // model.get("siglip_patch_size", model["patch_size"]),
        norm_eps=siglip["layer_norm_eps"],
    )


def config_from_official(official: Mapping[str, Any], tied: bool) -> TunaConfig:
    """The config of the model that `config` in `state_dict.json` describes, computing in float32.

    Args:
      official: `config` of `state_dict.json`.
      tied: whether the head of the language transformer is its embedding.
    """
    llm, head, model = official["llm"], official["diffusion_head"], official["tuna_model"]
    scaling = head["rope_scaling"]
    vae, pixels, flow = _space(official)
    siglip = official.get("siglip_hf")
    return TunaConfig(
        vae=vae,
        pixels=pixels,
        flow=flow,
        design="latent_only" if siglip is None else "cascade",
        mask_token=bool(model.get("enable_mask_token", False)),
        representation=RepresentationConfig() if siglip is None else _representation(siglip, model),
        language=LanguageConfig(
            vocabulary=official["llm_vocab_size"],
            width=llm["hidden_size"],
            layers=llm["num_hidden_layers"],
            heads=llm["num_attention_heads"],
            kv_heads=llm["num_key_value_heads"],
            head_dim=llm.get("head_dim") or llm["hidden_size"] // llm["num_attention_heads"],
            mlp=llm["intermediate_size"],
            rope_base=llm["rope_theta"],
            norm_eps=llm["rms_norm_eps"],
            tied=tied,
        ),
        flow_head=FlowHeadConfig(
            layers=head["num_layers"],
            heads=head["num_attention_heads"],
            kv_heads=head["num_key_value_heads"],
            head_dim=head["head_dim"],
            mlp=head["intermediate_size"],
            norm_eps=head["rms_norm_eps"],
            text_rope_base=head["rope_theta"],
            text_rope_factor=scaling["factor"],
            text_rope_low=scaling["low_freq_factor"],
            text_rope_high=scaling["high_freq_factor"],
            text_rope_original_length=scaling["original_max_position_embeddings"],
        ),
        compute_dtype="float32",
        remat="none",
    )
