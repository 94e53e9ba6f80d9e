"""Layers of the causal video VAEs (model.md section 1): norm, causal convolution, residual blocks, resampling.

Every layer takes the *history* of its input and returns the history for the next chunk. A history of None means that
the first frame of the input is the first of the clip, which is a chunk of its own.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from tuna_jax.models import layers
from tuna_jax.models.layers import fan_in_init, zeros_init

# [batch, time, height, width, channels]; a level changes all axes except the batch, so they have no names.
Video = Float[Array, "_ _ _ _ _"]
_AT_ONCE = 4096  # Frames of up to this many positions (1024x1024 pixels) have their attention computed at once.
History = Any  # A pytree of arrays, or None at the beginning of a clip.


class ChannelNorm(nnx.Module):
    """`x / max(|x|_2, 1e-12) * sqrt(channels) * gamma` over channels, in float32."""

    def __init__(self, channels: int):
        self.gamma = nnx.Param(jnp.ones((channels,), jnp.float32))

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        y = x.astype(jnp.float32)
        # The clamp is inside the root, so that the gradient of an all-zero vector is 0 and not NaN.
        y = y * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(y), -1, keepdims=True), 1e-24))
        return (y * (x.shape[-1] ** 0.5 * self.gamma[...])).astype(x.dtype)


def _conv2d(x: Video, kernel: Float[Array, "kh kw i o"], stride: int, padding: Any) -> Video:
    """A 2-D convolution of every frame."""
    batch, time = x.shape[:2]
    y = jax.lax.conv_general_dilated(
        x.reshape(batch * time, *x.shape[2:]),
        kernel.astype(x.dtype),
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(batch, time, *y.shape[1:])


class CausalConv(nnx.Module):
    """3-D convolution over the current frame and earlier ones; kernel `[time, height, width, in, out]`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: tuple[int, int, int],
        *,
        stride: int = 1,
        init: Any = fan_in_init,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(init(rngs.params(), (*size, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))
        self.stride = stride

    def __call__(self, x: Video, history: Video | None = None) -> tuple[Video, Video]:
        """x and the `taps - 1` frames before it (None: zeros) -> output, and the history for the next chunk."""
        kernel = self.kernel[...]
        taps = kernel.shape[0]
        pad = [(k // 2, k // 2) for k in kernel.shape[1:3]]
        if history is None and x.shape[1] == 1 and self.stride == 1:
            # Before the first frame there are only zeros, so a single first frame needs only the last tap.
            y = _conv2d(x, kernel[-1], 1, pad)
            zeros = jnp.zeros((x.shape[0], taps - 1, *x.shape[2:]), x.dtype)
            return y + self.bias[...].astype(x.dtype), _tail(zeros, x, taps - 1)
        if history is None:
            history = jnp.zeros((x.shape[0], taps - 1, *x.shape[2:]), x.dtype)
        y = jax.lax.conv_general_dilated(
            jnp.concatenate([history, x], axis=1),
            kernel.astype(x.dtype),
            (self.stride, 1, 1),
            [(0, 0), *pad],
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )
        return y + self.bias[...].astype(x.dtype), _tail(history, x, history.shape[1])


def _tail(history: Video, x: Video, count: int) -> Video:
    """The last `count` frames of history followed by x."""
    joined = jnp.concatenate([history, x], axis=1)
    return joined[:, joined.shape[1] - count :]


class ResidualBlock(nnx.Module):
    """norm -> SiLU -> conv -> norm -> SiLU -> conv, plus a shortcut, 1x1x1 where the width changes."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.norm1 = ChannelNorm(inputs)
        self.conv1 = CausalConv(inputs, outputs, (3, 3, 3), rngs=rngs)
        self.norm2 = ChannelNorm(outputs)
        self.conv2 = CausalConv(outputs, outputs, (3, 3, 3), rngs=rngs)
        wider = inputs != outputs
        self.shortcut = CausalConv(inputs, outputs, (1, 1, 1), rngs=rngs) if wider else None

    def __call__(self, x: Video, history: History = None) -> tuple[Video, History]:
        before = history or {}
        shortcut = x if self.shortcut is None else self.shortcut(x)[0]
        y, first = self.conv1(jax.nn.silu(self.norm1(x)), before.get("conv1"))
        y, second = self.conv2(jax.nn.silu(self.norm2(y)), before.get("conv2"))
        return shortcut + y, {"conv1": first, "conv2": second}


class FrameAttention(nnx.Module):
    """Single-head attention over the positions of each frame, in float32 softmax.

    The queries of a large frame are processed row by row: all at once would need (height x width)^2 scores.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.norm = ChannelNorm(channels)
        self.qkv = layers.Linear(channels, 3 * channels, rngs=rngs)
        self.out = layers.Linear(channels, channels, init=zeros_init, rngs=rngs)

    def __call__(self, x: Video) -> Video:
        batch, time, height, width, channels = x.shape
        flat = self.norm(x).reshape(batch * time, height * width, channels)
        query, key, value = jnp.split(self.qkv(flat), 3, axis=-1)

        def attend(query: Float[Array, "b q c"]) -> Float[Array, "b q c"]:
            scores = jnp.einsum("bqc,bkc->bqk", query, key, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(scores * channels**-0.5, axis=-1).astype(x.dtype)
            return jnp.einsum("bqk,bkc->bqc", weights, value)

        if height * width <= _AT_ONCE:
            return x + self.out(attend(query)).reshape(x.shape)
        rows = jnp.moveaxis(query.reshape(batch * time, height, width, channels), 1, 0)
        attended = jnp.moveaxis(jax.lax.map(attend, rows), 0, 1)
        return x + self.out(attended.reshape(query.shape)).reshape(x.shape)


class Middle(nnx.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.block1 = ResidualBlock(channels, channels, rngs=rngs)
        self.attention = FrameAttention(channels, rngs=rngs)
        self.block2 = ResidualBlock(channels, channels, rngs=rngs)

    def __call__(self, x: Video, history: History = None) -> tuple[Video, History]:
        before = history or {}
        x, first = self.block1(x, before.get("block1"))
        x, second = self.block2(self.attention(x), before.get("block2"))
        return x, {"block1": first, "block2": second}


class Head(nnx.Module):
    """norm -> SiLU -> conv: the last layer of encoder and decoder."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.norm = ChannelNorm(inputs)
        self.conv = CausalConv(inputs, outputs, (3, 3, 3), rngs=rngs)

    def __call__(self, x: Video, history: History = None) -> tuple[Video, History]:
        return self.conv(jax.nn.silu(self.norm(x)), history)


class Downsample(nnx.Module):
    """Halves space (and time, after the first frame)."""

    def __init__(self, channels: int, halve_time: bool, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(fan_in_init(rngs.params(), (3, 3, channels, channels), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.time_conv = (
            CausalConv(channels, channels, (3, 1, 1), stride=2, rngs=rngs) if halve_time else None
        )

    def __call__(self, x: Video, history: Video | None = None) -> tuple[Video, Video | None]:
        # Padding right and bottom only: the window of output i starts at input 2i.
        x = _conv2d(x, self.kernel[...], 2, [(0, 1), (0, 1)]) + self.bias[...].astype(x.dtype)
        if self.time_conv is None:
            return x, None
        if history is not None:
            return self.time_conv(x, history)[0], x[:, -1:]
        first, rest = x[:, :1], x[:, 1:]
        if rest.shape[1] == 0:
            return first, x[:, -1:]
        return jnp.concatenate([first, self.time_conv(rest, first)[0]], axis=1), x[:, -1:]


class Upsample(nnx.Module):
    """Doubles space by nearest neighbour and a convolution (and time, after the first frame)."""

    def __init__(self, channels: int, outputs: int, double_time: bool, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(fan_in_init(rngs.params(), (3, 3, channels, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))
        self.time_conv = (
            CausalConv(channels, 2 * channels, (3, 1, 1), rngs=rngs) if double_time else None
        )

    def _double_time(self, x: Video, history: Video | None) -> tuple[Video, Video]:
        assert self.time_conv is not None
        y, history = self.time_conv(x, history)
        batch, time, height, width, channels = y.shape
        y = y.reshape(batch, time, height, width, 2, channels // 2)
        y = jnp.moveaxis(y, 4, 2)  # the two halves of the channels are two successive frames
        return y.reshape(batch, 2 * time, height, width, channels // 2), history

    def __call__(self, x: Video, history: Video | None = None) -> tuple[Video, Video | None]:
        if self.time_conv is not None and history is not None:
            x, history = self._double_time(x, history)
        elif self.time_conv is not None:
            # The first frame stays one frame, and the later frames see zeros in its place.
            first, rest = x[:, :1], x[:, 1:]
            history = jnp.zeros((x.shape[0], 2, *x.shape[2:]), x.dtype)
            if rest.shape[1]:
                rest, history = self._double_time(rest, history)
                first = jnp.concatenate([first, rest], axis=1)
            x = first
        x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
        x = _conv2d(x, self.kernel[...], 1, [(1, 1), (1, 1)]) + self.bias[...].astype(x.dtype)
        return x, history


def average_down(x: Video, outputs: int, time: int, space: int) -> Video:
    """Parameter-free shortcut: moves `time x space x space` blocks into channels and averages groups of them.

    An odd first chunk gets zero frames *in front*, and the mean counts them.
    """
    x = jnp.pad(x, ((0, 0), (-x.shape[1] % time, 0), (0, 0), (0, 0), (0, 0)))
    batch, frames, height, width, channels = x.shape
    x = x.reshape(
        batch, frames // time, time, height // space, space, width // space, space, channels
    )
    x = x.transpose(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(*x.shape[:4], outputs, -1).mean(-1)


def duplicate_up(x: Video, outputs: int, time: int, space: int, first: bool) -> Video:
    """Parameter-free shortcut, the counterpart of `average_down`; the first chunk drops its leading copies."""
    batch, frames, height, width, channels = x.shape
    x = jnp.repeat(x, outputs * time * space * space // channels, axis=-1)
    x = x.reshape(batch, frames, height, width, outputs, time, space, space)
    x = x.transpose(0, 1, 5, 2, 6, 3, 7, 4)
    x = x.reshape(batch, frames * time, height * space, width * space, outputs)
    return x[:, time - 1 :] if first else x


class DownLevel(nnx.Module):
    """Residual blocks, then down-sampling (not at the last level), plus group averaging (only with `residual`)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        blocks: int,
        time: int,
        space: int,
        *,
        residual: bool = True,
        rngs: nnx.Rngs,
    ):
        widths = [inputs] + [outputs] * blocks
        self.blocks = nnx.List(
            [ResidualBlock(i, o, rngs=rngs) for i, o in zip(widths[:-1], widths[1:], strict=True)]
        )
        self.downsample = Downsample(outputs, time == 2, rngs=rngs) if space == 2 else None
        self.outputs, self.time, self.space = outputs, time, space
        self.residual = residual

    def __call__(self, x: Video, history: History = None) -> tuple[Video, History]:
        entered = x
        x, after = _run_blocks(self.blocks, x, history)
        if self.downsample is not None:
            x, after["resample"] = self.downsample(x, (history or {}).get("resample"))
        if self.residual:
            x = x + average_down(entered, self.outputs, self.time, self.space)
        return x, after


class UpLevel(nnx.Module):
    """Residual blocks, then up-sampling plus duplication (neither at the last level).

    Without `residual` (Wan 2.1) there is no duplication, and the up-sampling's convolution halves the width.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        blocks: int,
        time: int,
        space: int,
        *,
        residual: bool = True,
        rngs: nnx.Rngs,
    ):
        widths = [inputs] + [outputs] * blocks
        self.blocks = nnx.List(
            [ResidualBlock(i, o, rngs=rngs) for i, o in zip(widths[:-1], widths[1:], strict=True)]
        )
        after = outputs if residual else outputs // 2
        self.upsample = Upsample(outputs, after, time == 2, rngs=rngs) if space == 2 else None
        self.outputs, self.time, self.space = outputs, time, space
        self.residual = residual

    def __call__(self, x: Video, history: History = None) -> tuple[Video, History]:
        entered = x
        x, after = _run_blocks(self.blocks, x, history)
        if self.upsample is None:
            return x, after
        x, after["resample"] = self.upsample(x, (history or {}).get("resample"))
        if not self.residual:
            return x, after
        first = history is None
        return x + duplicate_up(entered, self.outputs, self.time, self.space, first), after


def _run_blocks(blocks: Any, x: Video, history: History) -> tuple[Video, dict[str, History]]:
    after: dict[str, History] = {}
    for index, block in enumerate(blocks):
        x, after[f"block{index}"] = block(x, (history or {}).get(f"block{index}"))
    return x, after


def run_stack(parts: list[tuple[str, Any]], x: Video, history: History) -> tuple[Video, History]:
    """Runs named parts one after another, each with its own part of the history; returns the new history by name."""
    after: dict[str, History] = {}
    for name, part in parts:
        x, after[name] = part(x, (history or {}).get(name))
    return x, after
