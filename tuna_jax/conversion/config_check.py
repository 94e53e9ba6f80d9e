"""Compares the declared config of a pretrained backbone with the model's config.

A language model with another RoPE base, or a vision encoder with another number of heads, has tensors of matching
shapes and computes something else. Hugging Face declares these numbers in `config.json`, GGUF in the file's metadata.
Settings that change the mathematics in a way that TUNA does not have, such as a sliding window or a soft cap, are
disagreements too, unless they have the value that changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuna_jax.config import TunaConfig
from tuna_jax.conversion.readers import SourceError
from tuna_jax.utils.text_files import read_json

# Our field -> name in config.json of Hugging Face.
_LANGUAGE = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp": "intermediate_size",
    "rope_base": "rope_theta",
    "norm_eps": "rms_norm_eps",
}
_VISION = {
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
    "norm_eps": "layer_norm_eps",
}
# Of `RepresentationConfig.dinov3`.
_DINOV3 = {"registers": "num_register_tokens", "rope_base": "rope_theta"}
_DINOV3_FLAGS = {
    "query_bias": "query_bias",
    "key_bias": "key_bias",
    "value_bias": "value_bias",
    "out_bias": "proj_bias",
    "mlp_bias": "mlp_bias",
    "gated": "use_gated_mlp",
}
# Our field -> name in GGUF metadata, after the architecture.
_GGUF = {
    "width": "embedding_length",
    "layers": "block_count",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_dim": "rope.dimension_count",
    "mlp": "feed_forward_length",
    "rope_base": "rope.freq_base",
    "norm_eps": "attention.layer_norm_rms_epsilon",
}
_ACTIVATIONS = {"qwen": ("silu", "swish"), "siglip": ("gelu_pytorch_tanh",)}
_ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function")
# Other names of numbers in `_LANGUAGE`.
_OTHER_NAMES = {
    "rope_base": ("rope_base", "rotary_emb_base", "rotary_base"),
    "norm_eps": ("norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
}
# Architectures with the keys of Qwen2 or Llama and its mathematics. Others share the keys and, for example, add 1 to
# the scales of norms (Gemma) or leave RoPE out in some layers (SmolLM3).
_MODEL_TYPES = {
    "qwen": ("qwen2", "llama", "mistral", "qwen2_vl", "qwen2_5_vl")
    + ("qwen2_vl_text", "qwen2_5_vl_text"),
    "siglip": ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model"),
    "dinov3": ("dinov3_vit",),
}
# Setting -> the values that change nothing; null never does.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        ("attn_logit_softcapping", "final_logit_softcapping", "attn_logit_softcap")
        + ("final_logit_softcap", "logits_soft_cap", "attention_chunk_size", "clip_qkv")
        + ("rope_local_base_freq", "quantization_config", "compression_config"),
        (),
    ),
    **dict.fromkeys(
        ("logit_scale", "logits_scaling", "embedding_multiplier", "residual_multiplier")
        + ("scale_emb", "embedding_scale", "partial_rotary_factor", "rotary_pct"),
        (1,),
    ),
    **dict.fromkeys(
        ("use_sliding_window", "scale_embedding", "rope_interleaved", "rope_interleave")
        + ("alibi", "use_alibi", "use_qk_norm", "qk_norm", "qk_layernorm", "parallel_attn")
        + ("use_parallel_residual", "parallel_residual", "norm_after", "post_norm", "mlp_bias")
        + ("use_post_norm", "use_bidirectional_attention", "is_encoder_decoder")
        + ("add_cross_attention", "attn_output_gate", "num_experts", "num_local_experts")
        + ("no_rope_layer_interval", "scale_depth"),
        (False,),
    ),
    **dict.fromkeys(("is_causal", "use_rope"), (True,)),
    "norm_type": ("rms", "rmsnorm", "rms_norm"),
    "position_embedding_type": ("rope", "rotary"),
}
_NEUTRAL_VISION: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("quantization_config", "compression_config"), ()),
    **dict.fromkeys(("qk_norm", "use_qk_norm", "use_sliding_window", "use_rope"), (False,)),
}
_NEUTRAL_VAE: dict[str, tuple[Any, ...]] = {"attn_scales": ([],), "quantization_config": ()}
# Of a GGUF file's metadata.
_NEUTRAL_GGUF: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("rope.scaling.factor", "rope.scale_linear", "rope.scaling.attn_factor"), (1,)),
    **dict.fromkeys(("logit_scale", "embedding_scale", "residual_scale"), (1,)),
    **dict.fromkeys(("attention.sliding_window", "expert_count", "attention.clamp_kqv"), (0,)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), (0,)),
    "rope.scaling.type": ("none",),
    "use_parallel_residual": (False,),
    "attention.causal": (True,),
}


def read_config_json(source: str | Path, name: str = "config.json") -> dict[str, Any]:
    """The file `name` in the folder of a source, or of its file; {} without that file.

    Raises:
      SourceError: it is not JSON, or not an object; what it is instead is named.
    """
    source = Path(source)
    path = (source if source.is_dir() else source.parent) / name
    try:
        values = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{error}. It declares numbers that the shapes of tensors do not show; replace it, or remove it to take "
            f"the model's own"
        ) from error
    if not isinstance(values, dict):
        raise SourceError(f"{path} is a {type(values).__name__}, not a config: an object {{...}}")
    return values


def part_of(layout: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The config of one backbone in a `config.json`: a full SigLIP or vision-language model nests its parts'."""
    name = "text_config" if layout == "qwen" else "vision_config"
    nested = values.get(name)
    if not isinstance(nested, Mapping):
        return dict(values)
    shared = ("tie_word_embeddings", "quantization_config", "compression_config")
    return {key: values[key] for key in shared if key in values} | dict(nested)


def disagreements(
    config: TunaConfig,
    layout: str,
    values: Mapping[str, Any],
    metadata: Mapping[str, str],
    keys: Collection[str] = (),
) -> list[str]:
    """Everything that a backbone declares and the model has not, as lines that name both.

    Args:
      config: the model.
      layout: 'qwen', 'siglip', 'dinov3', 'wan' or 'diffusers'.
      values: the backbone's `config.json`, or {}.
      metadata: a GGUF file's metadata, or {}.
      keys: of its tensors.
    """
    if layout == "diffusers":
        return _of_vae(config, values)
    if layout not in _MODEL_TYPES:
        return []
    part = "language" if layout == "qwen" else "representation"
    sizes = getattr(config, part)
    values = part_of(layout, values)
    is_gguf = "embedding_length" in metadata
    lines = [] if is_gguf else _model_type(layout, values)
    rope = values.get("rope_parameters") or {}  # transformers 5
    if isinstance(rope, Mapping) and not any(isinstance(v, Mapping) for v in rope.values()):
        values = {**values, **rope}
    elif layout == "qwen":
        lines.append(
            "the backbone has a RoPE of its own for some layers, TUNA's is the same in all"
        )
    lines += _numbers(part, sizes, _declared(layout, values, metadata if is_gguf else None))
    if layout == "dinov3":
        lines += _dinov3(config, values)
    own = (config.representation.dinov3.activation,)
    activations = own if layout == "dinov3" else _ACTIVATIONS[layout]
    for key in _ACTIVATION_KEYS:
        activation = values.get(key)
        if activation is not None and activation not in activations:
            lines.append(
                f"the backbone's activation is {activation!r}, TUNA's is {activations[0]!r}"
            )
    neutral = _NEUTRAL if layout == "qwen" else _NEUTRAL_VISION
    lines += _unsupported(values, neutral)
    if layout == "qwen":
        lines += _attention(sizes, values, keys)
    if is_gguf:
        lines += _unsupported(metadata, _NEUTRAL_GGUF)
        lines += _scale(sizes, "attention.scale", metadata.get("attention.scale"))
    return lines


def _declared(
    layout: str, values: Mapping[str, Any], metadata: Mapping[str, str] | None
) -> list[tuple[str, Any]]:
    """(our field, declared number) of each number that is declared."""
    if metadata is not None:
        named = [(field, metadata.get(name)) for field, name in _GGUF.items()]
    else:
        names = _LANGUAGE if layout == "qwen" else _VISION
        named = [(field, values.get(name)) for field, name in names.items()]
        if layout == "qwen":
            named += [(f, values.get(name)) for f, names in _OTHER_NAMES.items() for name in names]
    return [(field, value) for field, value in named if value is not None]


def _numbers(part: str, sizes: Any, declared: Sequence[tuple[str, Any]]) -> list[str]:
    lines = []
    for field, theirs in declared:
        ours = getattr(sizes, field)
        number = _number(theirs)
        if number is None:
            lines.append(f"{part}.{field} is {ours:g}, the backbone's is {theirs!r}, no number")
        elif not math.isclose(number, ours, rel_tol=1e-6):
            lines.append(f"{part}.{field} is {ours:g}, the backbone's is {number:g}")
    return list(dict.fromkeys(lines))


def _model_type(layout: str, values: Mapping[str, Any]) -> list[str]:
    kind = values.get("model_type")
    if kind is None or kind in _MODEL_TYPES[layout]:
        return []
    return [
        f"the backbone is of model_type {kind!r}, whose mathematics TUNA does not have; supported are "
        f"{', '.join(_MODEL_TYPES[layout])}"
    ]


def _unsupported(values: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> list[str]:
    """A line for each setting that has another value than those that change nothing."""
    lines = []
    for name, allowed in neutral.items():
        value = values.get(name)
        same = [value == good or _number(value) == _number(good) is not None for good in allowed]
        if value is not None and not any(same):
            shown = repr(value)
            lines.append(
                f"the backbone has {name}={shown[:80]}, which TUNA's transformer does not support"
            )
    return lines


def _attention(sizes: Any, values: Mapping[str, Any], keys: Collection[str]) -> list[str]:
    """Windows, scales, positions and biases of a language model's attention that TUNA's has not."""
    lines = []
    window = values.get("sliding_window")
    # Qwen2 switches its window with `use_sliding_window`; Mistral's is on wherever it is set.
    if window and values.get("use_sliding_window") is None and values.get("model_type") != "qwen2":
        lines.append(
            f"the backbone has sliding_window={window!r}, TUNA's attention sees everything"
        )
    kinds = set(values.get("layer_types") or ()) - {"full_attention"}
    if kinds:
        lines.append(
            f"the backbone has layers of {', '.join(map(str, sorted(map(str, kinds))))}, TUNA's have full_attention"
        )
    scaling = values.get("rope_scaling") or {}
    scaling = scaling if isinstance(scaling, Mapping) else {"type": str(scaling)}
    kind = values.get("rope_type") or scaling.get("rope_type") or scaling.get("type") or "default"
    factor = scaling.get("factor", values.get("factor"))
    if kind == "default" and factor is not None and _number(factor) != 1:
        kind = f"factor {factor}"
    if kind != "default":
        lines.append(f"the backbone scales RoPE ({kind}), TUNA's language transformer does not")
    without_rope = values.get("no_rope_layers")
    if without_rope and not (
        isinstance(without_rope, list) and all(flag == 1 for flag in without_rope)
    ):
        lines.append("the backbone has layers without RoPE (no_rope_layers), TUNA has none")
    lines += _numbers(
        "language",
        sizes,
        [("head_dim", values[k]) for k in ("query_pre_attn_scalar", "rotary_dim") if values.get(k)],
    )
    if values.get("dim_model_base"):
        lines += _numbers("language", sizes, [("width", values["dim_model_base"])])
    for name in ("attention_multiplier", "attention_scale", "softmax_scale"):
        lines += _scale(sizes, name, values.get(name))
    biased = any(key.endswith("q_proj.bias") for key in keys)
    for name in ("attention_bias", "qkv_bias"):
        if values.get(name) is False and biased:
            lines.append(f"the backbone declares {name}=false, and its file has such biases")
        if values.get(name) is True and keys and not biased:
            lines.append(f"the backbone declares {name}=true, and its file has no such biases")
    return lines


def _scale(sizes: Any, name: str, value: Any) -> list[str]:
    """The scale of attention logits: TUNA's is one over the root of a head's width."""
    usual = sizes.head_dim**-0.5
    number = _number(value)
    if value is None or (number is not None and math.isclose(number, usual, rel_tol=1e-4)):
        return []
    return [f"the backbone has {name}={value!r}, TUNA scales attention by {usual:g}"]


def _dinov3(config: TunaConfig, values: Mapping[str, Any]) -> list[str]:
    """What only DINOv3 declares. (Its stochastic depth and changes of coordinates are only for its training.)"""
    own, part = config.representation.dinov3, "representation.dinov3"
    named = [(field, values.get(name)) for field, name in _DINOV3.items()]
    lines = _numbers(part, own, [(field, value) for field, value in named if value is not None])
    for field, name in _DINOV3_FLAGS.items():
        ours, theirs = getattr(own, field), values.get(name)
        if theirs is not None and theirs is not ours:
            lines.append(f"{part}.{field} is {ours}, the backbone's {name} is {theirs!r}")
    return lines


def _of_vae(config: TunaConfig, values: Mapping[str, Any]) -> list[str]:
    """What diffusers declares of a VAE and no shape shows: the values of its latents' statistics, and its structure."""
    lines, ours = [], config.video_vae
    patch = values.get("patch_size")
    for name, mine, theirs in (
        ("residual", ours.residual, values.get("is_residual")),
        ("pixel_patch", ours.pixel_patch, patch if patch or "patch_size" not in values else 1),
    ):
        if theirs is not None and theirs != mine:
            lines.append(f"vae.{name} is {mine}, the VAE's is {theirs!r}")
    lines += _unsupported(values, _NEUTRAL_VAE)
    for name, ours in zip(
        ("latents_mean", "latents_std"), config.video_vae.statistics, strict=True
    ):
        theirs = values.get(name)
        if theirs is None:
            continue
        same = isinstance(theirs, list) and len(theirs) == len(ours)
        if not same or not all(
            (number := _number(b)) is not None
            and math.isclose(a, number, rel_tol=1e-3, abs_tol=1e-4)
            for a, b in zip(ours, theirs, strict=True)
        ):
            lines.append(f"the VAE's {name} differ from the model's (vae.latent_stats)")
    return lines


def _number(value: Any) -> float | None:
    """A declared value as a number; None if it is not one."""
    if isinstance(value, (list, Mapping)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
