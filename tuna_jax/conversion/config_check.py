"""Compares the declared config of a pretrained backbone with the model's config.

A language model with another RoPE base, or a vision encoder with another number of heads, has tensors of matching
shapes and computes something else. Hugging Face declares these numbers in `config.json`, GGUF in the file's metadata.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuna_jax.config import TunaConfig
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
_ACTIVATIONS = {"qwen": ("silu",), "siglip": ("gelu_pytorch_tanh",)}


def read_config_json(source: str | Path) -> dict[str, Any]:
    """The `config.json` in the folder of a source, or of its file; {} if there is none or it is not JSON."""
    source = Path(source)
    path = (source if source.is_dir() else source.parent) / "config.json"
    try:
        values = read_json(path)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def disagreements(
    config: TunaConfig, layout: str, values: Mapping[str, Any], metadata: Mapping[str, str]
) -> list[str]:
    """Every declared number of a backbone that differs from the model's, as lines that name both.

    Args:
      config: the model.
      layout: 'qwen' or 'siglip'; shapes determine all numbers of the others.
      values: the backbone's `config.json`, or {}.
      metadata: a GGUF file's metadata, or {}.
    """
    if layout not in _ACTIVATIONS:
        return []
    part = "language" if layout == "qwen" else "representation"
    sizes = getattr(config, part)
    # A full SigLIP or vision-language model nests the config of each part.
    values = values.get("text_config" if layout == "qwen" else "vision_config", values)
    values = {**values, **(values.get("rope_parameters") or {})}  # transformers 5
    if "embedding_length" in metadata:
        declared = {field: metadata.get(name) for field, name in _GGUF.items()}
    else:
        names = _LANGUAGE if layout == "qwen" else _VISION
        declared = {field: values.get(name) for field, name in names.items()}
    lines = []
    for field, theirs in declared.items():
        ours = getattr(sizes, field)
        if theirs is not None and not math.isclose(float(theirs), ours, rel_tol=1e-6):
            lines.append(f"{part}.{field} is {ours:g}, the backbone's is {float(theirs):g}")
    activation = values.get("hidden_act")
    if activation is not None and activation not in _ACTIVATIONS[layout]:
        lines.append(
            f"the backbone's activation is {activation!r}, TUNA's is {_ACTIVATIONS[layout][0]!r}"
        )
    scaling = values.get("rope_scaling") or {}
    kind = values.get("rope_type") or scaling.get("rope_type") or scaling.get("type") or "default"
    if layout == "qwen" and kind != "default":
        lines.append(f"the backbone scales RoPE ({kind}), TUNA's language transformer does not")
    return lines
