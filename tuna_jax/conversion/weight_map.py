"""The weight map: PyTorch keys on the left, our parameter paths on the right.

A row is a tensor family: a key template, a path, and an invertible transform. A template with `{}` stands for one
tensor per layer, and ours are stacked on axis 0. The map is used in both directions and checked as a bijection: all
unmapped, missing, duplicate and wrongly shaped tensors are reported together.

Official TUNA state dicts are the PyTorch side. The VAE's keys there are `vae.model.` + the key of `Wan2.2_VAE.pth`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from tuna_jax.config import TunaConfig
from tuna_jax.conversion.vae_weight_map import VAE_PREFIX, vae_rows
from tuna_jax.conversion.weight_rows import (
    CONV1X1,
    SAME1,
    SAME2,
    TOKEN,
    TOKENS,
    PatchTransform,
    Row,
    Shape,
    Transform,
    linear_rows,
    norm_rows,
)
from tuna_jax.utils.param_tree import flatten, unflatten


def language_rows(config: TunaConfig, torch: str = "tuna.") -> list[Row]:
    """Qwen2.5, in its Hugging Face names after a prefix."""
    count, layer, path = config.language.layers, f"{torch}model.layers.{{}}", "language.layers"
    rows = [Row(f"{torch}model.embed_tokens.weight", "language.embedding", SAME2)]
    for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value")):
        rows += linear_rows(f"{layer}.self_attn.{theirs}_proj", f"{path}.{ours}", count)
    rows += linear_rows(f"{layer}.self_attn.o_proj", f"{path}.out", count, bias=False)
    for name in ("gate", "up", "down"):
        rows += linear_rows(f"{layer}.mlp.{name}_proj", f"{path}.mlp.{name}", count, bias=False)
    rows += norm_rows(f"{layer}.input_layernorm", f"{path}.norm1", count)
    rows += norm_rows(f"{layer}.post_attention_layernorm", f"{path}.norm2", count)
    rows += norm_rows(f"{torch}model.norm", "language.norm")
    if not config.language.tied:
        rows += linear_rows(f"{torch}lm_head", "language.head", bias=False)
    return rows


def representation_rows(config: TunaConfig, torch: str = "vision_model.") -> list[Row]:
    """The vision transformer, in its Hugging Face names after a prefix, and its patch embedding.

    The released code has no DINOv3; in a state dict in its layout, the names of transformers follow the same prefix.
    """
    if config.representation.kind == "dinov3":
        return dinov3_rows(config, torch)
    count, path = config.representation.layers, "representation.layers"
    layer = f"{torch}encoder.layers.{{}}"
    rows = [
        Row(
            f"{torch}embeddings.patch_embedding.weight",
            "representation.patch.kernel",
            _patch_transform(config),
        ),
        Row(f"{torch}embeddings.patch_embedding.bias", "representation.patch.bias", SAME1),
        Row(f"{torch}embeddings.position_embedding.weight", "representation.position", SAME2),
    ]
    for number in (1, 2):
        rows += norm_rows(f"{layer}.layer_norm{number}", f"{path}.norm{number}", count, bias=True)
    for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
        rows += linear_rows(f"{layer}.self_attn.{theirs}", f"{path}.{ours}", count)
    rows += linear_rows(f"{layer}.self_attn.out_proj", f"{path}.out", count)
    rows += linear_rows(f"{layer}.mlp.fc1", f"{path}.up", count)
    return rows + linear_rows(f"{layer}.mlp.fc2", f"{path}.down", count)


def dinov3_rows(config: TunaConfig, torch: str) -> list[Row]:
    """DINOv3's vision transformer, in the names of its Hugging Face repositories after a prefix."""
    count, own, path = (
        config.representation.layers,
        config.representation.dinov3,
        "representation.layers",
    )
    patch, layer = f"{torch}embeddings.patch_embeddings", f"{torch}layer.{{}}"
    rows = [
        Row(f"{patch}.weight", "representation.patch.kernel", _patch_transform(config)),
        Row(f"{patch}.bias", "representation.patch.bias", SAME1),
        Row(f"{torch}embeddings.cls_token", "representation.cls", TOKEN),
    ]
    if own.registers:
        rows.append(Row(f"{torch}embeddings.register_tokens", "representation.registers", TOKENS))
    for number in (1, 2):
        rows += norm_rows(f"{layer}.norm{number}", f"{path}.norm{number}", count, bias=True)
        scale = f"layer_scale{number}"
        rows.append(Row(f"{layer}.{scale}.lambda1", f"{path}.{scale}.scale", SAME1, count))
    for theirs, ours, bias in (
        ("q", "query", own.query_bias),
        ("k", "key", own.key_bias),
        ("v", "value", own.value_bias),
        ("o", "out", own.out_bias),
    ):
        rows += linear_rows(f"{layer}.attention.{theirs}_proj", f"{path}.{ours}", count, bias)
    for name in ("gate", "up", "down") if own.gated else ("up", "down"):
        rows += linear_rows(f"{layer}.mlp.{name}_proj", f"{path}.{name}", count, own.mlp_bias)
    return rows


def patch_of(config: TunaConfig) -> tuple[int, int]:
    """(side, channels) of the kernel of the patch embedding, as a convolution of pixels or of a VAE's latents."""
    if config.vae is not None:
        return config.vae.latent_patch, config.vae.vae_channels
    assert config.pixels is not None
    return config.pixels.patch, 3


def _patch_transform(config: TunaConfig) -> Transform:
    side, channels = patch_of(config)
    return CONV1X1 if side == 1 else PatchTransform(patch=side, colours=channels)


def connector_rows() -> list[Row]:
    """The connector between representation encoder and language transformer."""
    return [
        *norm_rows("siglip_proj.0", "connector.norm"),
        *linear_rows("siglip_proj.1", "connector.up"),
        *linear_rows("siglip_proj.3", "connector.down"),
    ]


def embedding_rows(config: TunaConfig) -> list[Row]:
    """The patch embedding of Tuna-2."""
    patch = "vision_encoder.patch_embedding"
    return [
        Row(f"{patch}.weight", "embedding.patch.kernel", _patch_transform(config)),
        Row(f"{patch}.bias", "embedding.patch.bias", SAME1),
        *norm_rows("vision_encoder.norm", "embedding.norm"),
    ]


def time_rows() -> list[Row]:
    """The time embedding."""
    return [
        *linear_rows("time_embed.mlp.0", "time_embedding.up"),
        *linear_rows("time_embed.mlp.2", "time_embedding.down"),
    ]


def flow_head_rows(config: TunaConfig) -> list[Row]:
    """The flow head's layers (`diffusion_head_a`) and final layer (`diffusion_head_b`)."""
    count, layer, path = config.flow_head.layers, "diffusion_head_a.{}", "flow_head.layers"
    rows: list[Row] = []
    for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
        rows += linear_rows(f"{layer}.self_attn.{theirs}_proj", f"{path}.{ours}", count, bias=False)
    for theirs, ours in (("q", "query"), ("k", "key")):
        rows += norm_rows(f"{layer}.self_attn.{theirs}_norm", f"{path}.{ours}_norm", count)
    for name in ("gate", "up", "down"):
        rows += linear_rows(f"{layer}.mlp.{name}_proj", f"{path}.mlp.{name}", count, bias=False)
    rows += norm_rows(f"{layer}.input_layernorm", f"{path}.norm1", count)
    rows += norm_rows(f"{layer}.post_attention_layernorm", f"{path}.norm2", count)
    rows += linear_rows(f"{layer}.adaLN_modulation.1", f"{path}.modulation.linear", count)
    rows += norm_rows("diffusion_head_b.norm_final", "flow_head.final.norm")
    rows += linear_rows("diffusion_head_b.adaLN_modulation.1", "flow_head.final.modulation.linear")
    return rows + linear_rows("diffusion_head_b.linear", "flow_head.final.linear")


def rows(config: TunaConfig) -> list[Row]:
    """The weight map of an official state dict of TUNA (including the VAE), Tuna-R or Tuna-2."""
    if config.design not in ("cascade", "latent_only"):
        raise ConversionError(
            f"a model of the design {config.design!r} has no layout in the released code; TUNA, Tuna-R ('cascade') and "
            f"Tuna-2 ('latent_only') have one"
        )
    vision = embedding_rows(config)
    if config.has_encoder:
        vision = [*representation_rows(config), *connector_rows()]
    return [
        *language_rows(config),
        *vision,
        *time_rows(),
        *flow_head_rows(config),
        *([Row("mask_token", "mask_token", TOKEN)] if config.mask_token else []),
        *([] if config.vae is None else vae_rows(config.vae)),
    ]


def aliases(config: TunaConfig) -> dict[str, str]:
    """PyTorch key -> key of the same tensor; these keys may be absent, and otherwise their tensors must be equal."""
    tied = {"tuna.lm_head.weight": "tuna.model.embed_tokens.weight"}
    return tied if config.language.tied else {}


class ConversionError(ValueError):
    """A state dict does not match the parameters; the message lists all such tensors."""


def torch_shapes(config: TunaConfig, params: Mapping[str, Any]) -> dict[str, Shape]:
    """Keys and shapes of the official state dict, including aliases.

    Args:
      config: the model.
      params: its parameters, or their shapes (`jax.eval_shape`); the VAE's under 'vae'.

    Raises:
      ConversionError: the weight map is not a bijection to the parameters.
    """
    shapes = {path: leaf.shape for path, leaf in flatten(params).items()}
    by_key: dict[str, Shape] = {}
    problems: list[str] = []
    for row in rows(config):
        if row.path not in shapes:
            problems.append(f"the weight map has {row.path}, which the model does not have")
            continue
        shape = shapes.pop(row.path)
        if row.layers is not None and shape[0] != row.layers:
            problems.append(f"{row.path} has {shape[0]} layers, the weight map {row.layers}")
        torch_shape = row.transform.torch_shape(shape if row.layers is None else shape[1:])
        for key in row.names():
            if key in by_key:
                problems.append(f"{key} is in the weight map twice")
            by_key[key] = torch_shape
    problems += [f"the weight map does not have {path}" for path in shapes]
    if problems:
        raise ConversionError("\n".join(problems))
    return by_key | {key: by_key[source] for key, source in aliases(config).items()}


def compare(
    expected: Mapping[str, Shape], shapes: Mapping[str, Shape], optional: Iterable[str]
) -> None:
    """Checks the shapes of a state dict.

    Args:
      expected: key -> shape in the model.
      shapes: key -> shape in the state dict.
      optional: expected keys that may be missing.

    Raises:
      ConversionError: a missing, unexpected or wrongly shaped tensor; the message lists all.
    """
    may_be_missing = set(optional)
    problems = [
        f"missing: {key} {list(shape)}"
        for key, shape in expected.items()
        if key not in shapes and key not in may_be_missing
    ]
    problems += [
        f"unexpected: {key} {list(shape)}" for key, shape in shapes.items() if key not in expected
    ]
    problems += [
        f"wrong shape: {key} is {list(shapes[key])}, the model requires {list(shape)}"
        for key, shape in expected.items()
        if key in shapes and tuple(shapes[key]) != tuple(shape)
    ]
    if problems:
        raise ConversionError(
            f"{len(problems)} tensors do not match this config:\n  " + "\n  ".join(problems)
        )


def has_vae(keys: Iterable[str]) -> bool:
    """Whether these PyTorch keys include a VAE, which may be absent from a TUNA checkpoint."""
    return any(key.startswith(VAE_PREFIX) for key in keys)


def without_vae(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The keys without those of the VAE."""
    return {key: shape for key, shape in shapes.items() if not key.startswith(VAE_PREFIX)}


def from_torch(
    config: TunaConfig,
    params: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    read: Callable[[str], np.ndarray],
) -> dict[str, Any]:
    """An official state dict -> parameters in memory (the VAE's under 'vae').

    `convert_checkpoint.py` converts file to file.

    Args:
      config: the model.
      params: shapes of its parameters.
      shapes: every key of the state dict, with its shape.
      read: returns the tensor of a key; called once per tensor.

    Raises:
      ConversionError: a missing, unexpected or wrongly shaped tensor (the message lists all), or an alias that differs.
    """
    compare(torch_shapes(config, params), shapes, aliases(config))
    check_aliases(config, shapes, read)
    flat: dict[str, np.ndarray] = {}
    for row in rows(config):
        tensors = [row.transform.to_ours(read(key)) for key in row.names()]
        flat[row.path] = tensors[0] if row.layers is None else np.stack(tensors)
    return unflatten(flat)


def check_aliases(
    config: TunaConfig, keys: Iterable[str], read: Callable[[str], np.ndarray]
) -> None:
    """Checks that aliases have equal tensors.

    Raises:
      ConversionError: two tensors differ.
    """
    for key, source in aliases(config).items():
        if key not in keys:
            continue
        # As unsigned integers: NaN equals itself, and all dtypes compare fast.
        first, second = (
            tensor.view(f"u{tensor.dtype.itemsize}") for tensor in map(read, (key, source))
        )
        if not np.array_equal(first, second):
            raise ConversionError(f"{key} differs from {source}, but this config ties them")


def to_torch(config: TunaConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters in memory (the VAE's under 'vae') -> an official state dict; the inverse of `from_torch`."""
    flat = flatten(params)
    state: dict[str, np.ndarray] = {}
    for row in rows(config):
        leaf = np.asarray(flat[row.path])
        for i, key in enumerate(row.names()):
            state[key] = row.transform.to_torch(leaf if row.layers is None else leaf[i])
    return state | {key: state[source] for key, source in aliases(config).items()}
