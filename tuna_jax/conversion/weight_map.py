"""The weight map: PyTorch keys on the left, our parameter paths on the right.

A row is a tensor family: a key template, a path, and an invertible transform. A template with `{}` stands for one
tensor per layer, and ours are stacked on axis 0. The map is used in both directions and checked as a bijection: all
unmapped, missing, duplicate and wrongly shaped tensors are reported together.

Official TUNA state dicts are the PyTorch side. The VAE's keys there are `vae.model.` + the key of `Wan2.2_VAE.pth`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tuna_jax.config import TunaConfig, VAEConfig
from tuna_jax.utils.param_tree import flatten, unflatten

Shape = tuple[int, ...]

VAE_PREFIX = "vae.model."


@dataclasses.dataclass(frozen=True)
class Transform:
    """An invertible change of layout: a permutation of axes, after adding or dropping unit axes.

    Attributes:
      axes: permutation that takes the PyTorch layout, without its dropped unit axes, to ours.
      units: number of trailing unit axes of the PyTorch tensor that ours does not have.
      leading: number of leading ones.
    """

    axes: tuple[int, ...]
    units: int = 0
    leading: int = 0

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """PyTorch layout -> ours."""
        shape = tensor.shape[self.leading : tensor.ndim - self.units]
        return tensor.reshape(shape).transpose(self.axes)

    def to_torch(self, tensor: np.ndarray) -> np.ndarray:
        """Ours -> PyTorch layout."""
        restored = tensor.transpose(tuple(int(i) for i in np.argsort(self.axes)))
        return restored.reshape((1,) * self.leading + restored.shape + (1,) * self.units)

    def torch_shape(self, ours: Shape) -> Shape:
        """The PyTorch shape of a tensor with this shape in our layout."""
        inner = tuple(ours[i] for i in np.argsort(self.axes))
        return (1,) * self.leading + inner + (1,) * self.units


@dataclasses.dataclass(frozen=True)
class PatchTransform(Transform):
    """A convolution whose stride is its kernel, `[out, colours, patch, patch]`, and a matrix `[patch^2 colours, out]`.

    The rows of the matrix are in the order of `models/pixels.patchify`: row, column, colour.
    """

    axes: tuple[int, ...] = (2, 3, 1, 0)
    patch: int = 16
    colours: int = 3

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """PyTorch layout -> ours."""
        return tensor.transpose(self.axes).reshape(-1, tensor.shape[0])

    def to_torch(self, tensor: np.ndarray) -> np.ndarray:
        """Ours -> PyTorch layout."""
        split = tensor.reshape(self.patch, self.patch, self.colours, tensor.shape[-1])
        return split.transpose(3, 2, 0, 1)

    def torch_shape(self, ours: Shape) -> Shape:
        """The PyTorch shape of a matrix with this shape."""
        return (ours[1], self.colours, self.patch, self.patch)


SAME1 = Transform((0,))
SAME2 = Transform((0, 1))
LINEAR = Transform((1, 0))  # [out, in] -> [in, out]
CONV1X1 = Transform((1, 0), units=2)  # [out, in, 1, 1] -> [in, out]
CONV2D = Transform((2, 3, 1, 0))  # [out, in, h, w] -> [h, w, in, out]
CONV3D = Transform((2, 3, 4, 1, 0))  # [out, in, t, h, w] -> [t, h, w, in, out]
GAMMA2D = Transform((0,), units=2)  # [c, 1, 1] -> [c]
GAMMA3D = Transform((0,), units=3)  # [c, 1, 1, 1] -> [c]
TOKEN = Transform((0,), leading=2)  # [1, 1, c] -> [c]
TOKENS = Transform((0, 1), leading=1)  # [1, n, c] -> [n, c]


@dataclasses.dataclass(frozen=True)
class Row:
    """A tensor family.

    Attributes:
      torch: PyTorch key; `{}` is replaced by the layer number.
      path: our dotted path.
      transform: from the PyTorch layout to ours, for one layer.
      layers: number of layers of the family; None for a single tensor.
    """

    torch: str
    path: str
    transform: Transform
    layers: int | None = None

    def names(self) -> list[str]:
        """The PyTorch keys of the family, in order."""
        if self.layers is None:
            return [self.torch]
        return [self.torch.format(i) for i in range(self.layers)]


def _linear(torch: str, path: str, layers: int | None = None, bias: bool = True) -> list[Row]:
    rows = [Row(f"{torch}.weight", f"{path}.kernel", LINEAR, layers)]
    return rows + [Row(f"{torch}.bias", f"{path}.bias", SAME1, layers)] if bias else rows


def _norm(torch: str, path: str, layers: int | None = None, bias: bool = False) -> list[Row]:
    rows = [Row(f"{torch}.weight", f"{path}.scale", SAME1, layers)]
    return rows + [Row(f"{torch}.bias", f"{path}.bias", SAME1, layers)] if bias else rows


def language_rows(config: TunaConfig, torch: str = "tuna.") -> list[Row]:
    """Qwen2.5, in its Hugging Face names after a prefix."""
    count, layer, path = config.language.layers, f"{torch}model.layers.{{}}", "language.layers"
    rows = [Row(f"{torch}model.embed_tokens.weight", "language.embedding", SAME2)]
    for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value")):
        rows += _linear(f"{layer}.self_attn.{theirs}_proj", f"{path}.{ours}", count)
    rows += _linear(f"{layer}.self_attn.o_proj", f"{path}.out", count, bias=False)
    for name in ("gate", "up", "down"):
        rows += _linear(f"{layer}.mlp.{name}_proj", f"{path}.mlp.{name}", count, bias=False)
    rows += _norm(f"{layer}.input_layernorm", f"{path}.norm1", count)
    rows += _norm(f"{layer}.post_attention_layernorm", f"{path}.norm2", count)
    rows += _norm(f"{torch}model.norm", "language.norm")
    if not config.language.tied:
        rows += _linear(f"{torch}lm_head", "language.head", bias=False)
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
        rows += _norm(f"{layer}.layer_norm{number}", f"{path}.norm{number}", count, bias=True)
    for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
        rows += _linear(f"{layer}.self_attn.{theirs}", f"{path}.{ours}", count)
    rows += _linear(f"{layer}.self_attn.out_proj", f"{path}.out", count)
    rows += _linear(f"{layer}.mlp.fc1", f"{path}.up", count)
    return rows + _linear(f"{layer}.mlp.fc2", f"{path}.down", count)


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
        rows += _norm(f"{layer}.norm{number}", f"{path}.norm{number}", count, bias=True)
        scale = f"layer_scale{number}"
        rows.append(Row(f"{layer}.{scale}.lambda1", f"{path}.{scale}.scale", SAME1, count))
    for theirs, ours, bias in (
        ("q", "query", own.query_bias),
        ("k", "key", own.key_bias),
        ("v", "value", own.value_bias),
        ("o", "out", own.out_bias),
    ):
        rows += _linear(f"{layer}.attention.{theirs}_proj", f"{path}.{ours}", count, bias)
    for name in ("gate", "up", "down") if own.gated else ("up", "down"):
        rows += _linear(f"{layer}.mlp.{name}_proj", f"{path}.{name}", count, own.mlp_bias)
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
        *_norm("siglip_proj.0", "connector.norm"),
        *_linear("siglip_proj.1", "connector.up"),
        *_linear("siglip_proj.3", "connector.down"),
    ]


def embedding_rows(config: TunaConfig) -> list[Row]:
    """The patch embedding of Tuna-2."""
    patch = "vision_encoder.patch_embedding"
    return [
        Row(f"{patch}.weight", "embedding.patch.kernel", _patch_transform(config)),
        Row(f"{patch}.bias", "embedding.patch.bias", SAME1),
        *_norm("vision_encoder.norm", "embedding.norm"),
    ]


def time_rows() -> list[Row]:
    """The time embedding."""
    return [
        *_linear("time_embed.mlp.0", "time_embedding.up"),
        *_linear("time_embed.mlp.2", "time_embedding.down"),
    ]


def flow_head_rows(config: TunaConfig) -> list[Row]:
    """The flow head's layers (`diffusion_head_a`) and final layer (`diffusion_head_b`)."""
    count, layer, path = config.flow_head.layers, "diffusion_head_a.{}", "flow_head.layers"
    rows: list[Row] = []
    for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
        rows += _linear(f"{layer}.self_attn.{theirs}_proj", f"{path}.{ours}", count, bias=False)
    for theirs, ours in (("q", "query"), ("k", "key")):
        rows += _norm(f"{layer}.self_attn.{theirs}_norm", f"{path}.{ours}_norm", count)
    for name in ("gate", "up", "down"):
        rows += _linear(f"{layer}.mlp.{name}_proj", f"{path}.mlp.{name}", count, bias=False)
    rows += _norm(f"{layer}.input_layernorm", f"{path}.norm1", count)
    rows += _norm(f"{layer}.post_attention_layernorm", f"{path}.norm2", count)
    rows += _linear(f"{layer}.adaLN_modulation.1", f"{path}.modulation.linear", count)
    rows += _norm("diffusion_head_b.norm_final", "flow_head.final.norm")
    rows += _linear("diffusion_head_b.adaLN_modulation.1", "flow_head.final.modulation.linear")
    return rows + _linear("diffusion_head_b.linear", "flow_head.final.linear")


@dataclasses.dataclass(frozen=True)
class VAENames:
    """Names of the VAE's parts in a layout.

    `{i}` is a level and `{j}` a block, or the sampler after the last block; `{k}` counts the blocks and samplers of all
    levels.
    """

    moments: str
    latent_in: str
    conv_in: str
    middle: tuple[str, str, str]
    norm_out: str
    conv_out: str
    down_block: str
    down_sampler: str
    up_block: str
    up_sampler: str
    norm1: str
    conv1: str
    norm2: str
    conv2: str
    shortcut: str


# `Wan2.2_VAE.pth` and official TUNA state dicts.
WAN = VAENames(
    moments="conv1",
    latent_in="conv2",
    conv_in="conv1",
    middle=("middle.0", "middle.1", "middle.2"),
    norm_out="head.0",
    conv_out="head.2",
    down_block="downsamples.{i}.downsamples.{j}",
    down_sampler="downsamples.{i}.downsamples.{j}",
    up_block="upsamples.{i}.upsamples.{j}",
    up_sampler="upsamples.{i}.upsamples.{j}",
    norm1="residual.0",
    conv1="residual.2",
    norm2="residual.3",
    conv2="residual.6",
    shortcut="shortcut",
)
# diffusers' `AutoencoderKLWan`.
DIFFUSERS = VAENames(
    moments="quant_conv",
    latent_in="post_quant_conv",
    conv_in="conv_in",
    middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    norm_out="norm_out",
    conv_out="conv_out",
    down_block="down_blocks.{i}.resnets.{j}",
    down_sampler="down_blocks.{i}.downsampler",
    up_block="up_blocks.{i}.resnets.{j}",
    up_sampler="up_blocks.{i}.upsampler",
    norm1="norm1",
    conv1="conv1",
    norm2="norm2",
    conv2="conv2",
    shortcut="conv_shortcut",
)
# The same two layouts for Wan 2.1, whose levels are one list (in diffusers only those of the encoder).
_FLAT = {
    WAN: dataclasses.replace(
        WAN,
        down_block="downsamples.{k}",
        down_sampler="downsamples.{k}",
        up_block="upsamples.{k}",
        up_sampler="upsamples.{k}",
    ),
    DIFFUSERS: dataclasses.replace(
        DIFFUSERS,
        down_block="down_blocks.{k}",
        down_sampler="down_blocks.{k}",
        up_sampler="up_blocks.{i}.upsamplers.0",
    ),
}


def vae_rows(config: VAEConfig, torch: str = VAE_PREFIX, names: VAENames = WAN) -> list[Row]:
    """The Wan VAE, 2.2 or 2.1 (`config.residual`), in the names of a layout, WAN or DIFFUSERS, after a prefix."""
    names = names if config.residual else _FLAT[names]

    def conv(theirs: str, ours: str, transform: Transform = CONV3D) -> list[Row]:
        return [
            Row(f"{torch}{theirs}.weight", f"vae.{ours}.kernel", transform),
            Row(f"{torch}{theirs}.bias", f"vae.{ours}.bias", SAME1),
        ]

    def gamma(theirs: str, ours: str, transform: Transform = GAMMA3D) -> list[Row]:
        return [Row(f"{torch}{theirs}.gamma", f"vae.{ours}.gamma", transform)]

    def block(theirs: str, ours: str, shortcut: bool) -> list[Row]:
        rows = gamma(f"{theirs}.{names.norm1}", f"{ours}.norm1")
        rows += conv(f"{theirs}.{names.conv1}", f"{ours}.conv1")
        rows += gamma(f"{theirs}.{names.norm2}", f"{ours}.norm2")
        rows += conv(f"{theirs}.{names.conv2}", f"{ours}.conv2")
        return rows + conv(f"{theirs}.{names.shortcut}", f"{ours}.shortcut") if shortcut else rows

    def middle(side: str) -> list[Row]:
        first, attention, second = (f"{side}.{name}" for name in names.middle)
        rows = block(first, f"{side}.middle.block1", False)
        rows += gamma(f"{attention}.norm", f"{side}.middle.attention.norm", GAMMA2D)
        rows += conv(f"{attention}.to_qkv", f"{side}.middle.attention.qkv", CONV1X1)
        rows += conv(f"{attention}.proj", f"{side}.middle.attention.out", CONV1X1)
        return rows + block(second, f"{side}.middle.block2", False)

    def levels(side: str, sizes: Sequence[tuple[int, int]], blocks: int) -> list[Row]:
        down = side == "encoder"
        halve = config.halve_time if down else config.halve_time[::-1]
        stack = names.down_block if down else names.up_block
        sampler = names.down_sampler if down else names.up_sampler
        resample = "downsample" if down else "upsample"
        rows: list[Row] = []
        for i, (inputs, outputs) in enumerate(sizes):
            ours, before = f"{side}.levels.{i}", i * (blocks + 1)
            for j in range(blocks):
                changes = j == 0 and inputs != outputs
                theirs = f"{side}.{stack.format(i=i, j=j, k=before + j)}"
                rows += block(theirs, f"{ours}.blocks.{j}", changes)
            if i < len(halve):
                theirs = f"{side}.{sampler.format(i=i, j=blocks, k=before + blocks)}"
                rows += conv(f"{theirs}.resample.1", f"{ours}.{resample}", CONV2D)
                if halve[i]:
                    rows += conv(f"{theirs}.time_conv", f"{ours}.{resample}.time_conv")
        return rows

    return [
        *conv(f"encoder.{names.conv_in}", "encoder.conv_in"),
        *levels("encoder", config.encoder_levels, config.blocks),
        *middle("encoder"),
        *gamma(f"encoder.{names.norm_out}", "encoder.head.norm"),
        *conv(f"encoder.{names.conv_out}", "encoder.head.conv"),
        *conv(names.moments, "moments"),
        *conv(names.latent_in, "latent_in"),
        *conv(f"decoder.{names.conv_in}", "decoder.conv_in"),
        *middle("decoder"),
        *levels("decoder", config.decoder_levels, config.blocks + 1),
        *gamma(f"decoder.{names.norm_out}", "decoder.head.norm"),
        *conv(f"decoder.{names.conv_out}", "decoder.head.conv"),
    ]


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
