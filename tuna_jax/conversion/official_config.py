"""The config of a model from the one that the released PyTorch code writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuna_jax.config import (
    FlowHeadConfig,
    LanguageConfig,
    RepresentationConfig,
    TunaConfig,
    VAEConfig,
)


def config_from_official(official: Mapping[str, Any], tied: bool) -> TunaConfig:
    """The config of the model that `config` in `state_dict.json` describes, computing in float32.

    Args:
      official: `config` of `state_dict.json`.
      tied: whether the head of the language transformer is its embedding.
    """
    llm, head, wan = official["llm"], official["diffusion_head"], official["vae"]
    siglip, model = official["siglip_hf"], official["tuna_model"]
    scaling = head["rope_scaling"]
    dropped = model["siglip_feature_layer"] + 1  # -2 keeps all layers except the last.
    return TunaConfig(
        vae=VAEConfig(
            latent_channels=wan["z_dim"],
            encoder_width=wan["dim"],
            decoder_width=wan["dec_dim"],
            multipliers=tuple(wan["dim_mult"]),
            blocks=wan["num_res_blocks"],
            halve_time=tuple(wan["temperal_downsample"]),
            latent_stats="custom",
            latent_mean=tuple(wan["mean"]),
            latent_std=tuple(wan["std"]),
        ),
        representation=RepresentationConfig(
            width=siglip["hidden_size"],
            layers=siglip["num_hidden_layers"] + dropped if dropped < 0 else dropped,
            heads=siglip["num_attention_heads"],
            mlp=siglip["intermediate_size"],
            grid=model["siglip_image_size"] // model["siglip_patch_size"],
            norm_eps=siglip["layer_norm_eps"],
        ),
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
