"""The weight map of Wan's VAEs, in their own names and in diffusers'."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tuna_jax.config import VAEConfig
from tuna_jax.conversion.weight_rows import (
    CONV1X1,
    CONV2D,
    CONV3D,
    GAMMA2D,
    GAMMA3D,
    SAME1,
    Row,
    Transform,
)

VAE_PREFIX = "vae.model."


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
