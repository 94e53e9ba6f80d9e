"""What a model's latents are: those of a VAE, or patches of pixels."""

from __future__ import annotations

import dataclasses
from typing import Any

from tuna_jax.utils.config_parsing import require

# Per-channel statistics of the Wan 2.2 VAE's latents, from the upstream checkpoint (model.md section 1).
_WAN22_MEAN = (
    (-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557)
    + (-0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825)
    + (-0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502)
    + (-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230)
    + (-0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748)
    + (0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667)
)
_WAN22_STD = (
    (0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013)
    + (0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978)
    + (0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659)
    + (0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093)
    + (0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887)
    + (0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744)
)

# Per-channel statistics of the Wan 2.1 VAE's latents, from the upstream checkpoint (diffusers' `AutoencoderKLWan`).
_WAN21_MEAN = (
    (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508)
    + (0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
)  # fmt: skip
_WAN21_STD = (
    (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743)
    + (3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)
)  # fmt: skip

LATENT_STATS = ("tuna", "wan2.2", "wan2.1", "custom")
PIXEL_ORDERS = ("raster", "patch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The causal video VAE of Wan 2.2 (model.md section 1), and that of Wan 2.1 (`wan21_vae`).

    Both are a stack of convolutions that compresses 8x in space. A visual token covers 16x16 pixels with either, by
    2x2 patches at the one or the other end of the stack: Wan 2.2 has them before it, of pixels (`pixel_patch`); Wan 2.1
    has none, and TUNA takes 2x2 patches of its latents (`latent_patch`).

    Attributes:
      latent_channels: channels of a latent position as the model sees it: those of the VAE, `vae_channels`, times
        `latent_patch^2`.
      encoder_width: channels of the encoder's first level; level i has `encoder_width * multipliers[i]`.
      decoder_width: the same for the decoder.
      multipliers: width multipliers, one per level.
      blocks: residual blocks per level of the encoder; the decoder has one more.
      halve_time: for every level except the last, whether the encoder halves time there (the decoder mirrors it).
      latent_stats: which per-channel statistics normalise latents: 'tuna' (mean := std, as in the training of the
        released checkpoints), 'wan2.2' and 'wan2.1' (upstream's), or 'custom' (`latent_mean`, `latent_std`).
      latent_mean: per-channel mean for 'custom', one for each of `vae_channels`.
      latent_std: per-channel standard deviation for 'custom', likewise.
      consistent_posterior: whether to divide the posterior's standard deviation by `latent_std` too. False matches the
        released code.
      by_frame: whether every frame of a clip is encoded as an image: F frames are F latent frames. Lets a VAE that was
        trained on images encode clips.
      residual: whether levels have parameter-free shortcuts, and up-sampling keeps the width (Wan 2.2); otherwise they
        have none, and up-sampling halves the width (Wan 2.1).
      pixel_patch: side of the patches of pixels that enter the convolutions, 1 or 2 (space-to-depth).
      latent_patch: side of the patches of the VAE's latents that are one latent position of the model
        (space-to-depth; the channels of a patch are its latents row by row, each with its `vae_channels`).
    """

    latent_channels: int = 48
    encoder_width: int = 160
    decoder_width: int = 256
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    halve_time: tuple[bool, ...] = (False, True, True)
    latent_stats: str = "tuna"
    latent_mean: tuple[float, ...] = ()
    latent_std: tuple[float, ...] = ()
    consistent_posterior: bool = False
    by_frame: bool = False
    residual: bool = True
    pixel_patch: int = 2
    latent_patch: int = 1

    def __post_init__(self) -> None:
        require(self.pixel_patch in (1, 2), f"vae.pixel_patch is {self.pixel_patch}; choose 1 or 2")
        require(
            self.latent_patch > 0 and self.latent_channels % self.latent_patch**2 == 0,
            f"vae.latent_patch is {self.latent_patch}; it must be at least 1, and vae.latent_channels, "
            f"{self.latent_channels}, divisible by its square",
        )
        odd = [m for m in self.multipliers[1:] if self.decoder_width * m % 2]
        require(
            self.residual or not odd,
            f"vae.decoder_width {self.decoder_width} times the multiplier {odd[:1]} is odd; without vae.residual, "
            f"up-sampling halves the width",
        )
        require(
            len(self.halve_time) == len(self.multipliers) - 1,
            f"vae.halve_time has {len(self.halve_time)} entries; it requires one for every level except the last, "
            f"{len(self.multipliers) - 1}",
        )
        require(
            self.latent_stats in LATENT_STATS,
            f"vae.latent_stats is {self.latent_stats!r}; choose one of {', '.join(LATENT_STATS)}",
        )
        mean, std = self.statistics
        require(
            len(mean) == len(std) == self.vae_channels,
            f"vae.latent_stats={self.latent_stats!r} has {len(mean)} means and {len(std)} standard deviations for "
            f"vae.latent_channels={self.latent_channels} and vae.latent_patch={self.latent_patch}, "
            f"{self.vae_channels} channels of the VAE; use 'custom' with latent_mean and latent_std of that length",
        )

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Per-channel (mean, std) of the VAE's latents, each of length `vae_channels`."""
        if self.latent_stats == "custom":
            return self.latent_mean, self.latent_std
        if self.latent_stats == "wan2.1":
            return _WAN21_MEAN, _WAN21_STD
        return (_WAN22_STD if self.latent_stats == "tuna" else _WAN22_MEAN), _WAN22_STD

    def identity(self) -> dict[str, Any]:
        """Its fields as a dict, to recognise latents by. Fields that earlier versions did not have are left out where
        they have their defaults, so that what those versions stored is still recognised."""
        added = {"residual": True, "pixel_patch": 2, "latent_patch": 1}
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if k not in added or v != added[k]}

    @property
    def vae_channels(self) -> int:
        """Channels of the VAE's own latents, before they are put together in patches (16 for Wan 2.1)."""
        return self.latent_channels // self.latent_patch**2

    @property
    def stack_factor(self) -> int:
        """Positions of the convolutional stack's input per position of its output, in height and in width (8)."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent position of the model in height and in width (16)."""
        return self.pixel_patch * self.stack_factor * self.latent_patch

    @property
    def encoder_levels(self) -> tuple[tuple[int, int], ...]:
        """(input, output) channels of the encoder's levels."""
        widths = [self.encoder_width * m for m in (1, *self.multipliers)]
        return tuple(zip(widths[:-1], widths[1:], strict=True))

    @property
    def decoder_levels(self) -> tuple[tuple[int, int], ...]:
        """(input, output) channels of the residual blocks of the decoder's levels; up-sampling comes after them."""
        outputs = [self.decoder_width * m for m in self.multipliers[::-1]]
        after = outputs if self.residual else [width // 2 for width in outputs]
        return tuple(zip([outputs[0], *after[:-1]], outputs, strict=True))

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame after the first (4 for Wan)."""
        return 1 if self.by_frame else 2 ** sum(self.halve_time)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Latent shape (T, h, w, C) of a clip.

        Args:
          frames: number of frames, 1 + k `temporal_factor`.
          height, width: size in pixels, multiples of `spatial_factor`.

        Raises:
          ValueError: an extent does not fit; it is named with the nearest ones that do.
        """
        space, time = self.spatial_factor, self.temporal_factor
        _require_divisible(height, width, space)
        below = (frames - 1) // time * time + 1
        require(
            frames > 0 and (frames - 1) % time == 0,
            f"{frames} frames is not 1 + {time}k; the nearest counts that are: "
            f"{', '.join(str(f) for f in (below, below + time) if f > 0)}",
        )
        return 1 + (frames - 1) // time, height // space, width // space, self.latent_channels


def _require_divisible(height: int, width: int, factor: int) -> None:
    for name, size in (("height", height), ("width", width)):
        low = size // factor * factor
        require(
            size > 0 and size % factor == 0,
            f"image {name} {size} is not divisible by {factor}; the nearest sizes that are: "
            f"{', '.join(str(s) for s in (low, low + factor) if s > 0)}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """Pixels in place of a VAE's latents (model.md sections 12 and 13).

    An image is an array of patches, `[1, H / patch, W / patch, 3 patch^2]`: the "latents" of such a model. The channels
    of a patch are its pixels row by row, each with red, green and blue, in [-1, 1].

    Attributes:
      patch: side of a patch in pixels.
      order: which pixels the flow head's output at image token j is. 'patch': those of patch j, which the token embeds.
        'raster': pixels `patch^2 j` to `patch^2 (j + 1) - 1` of the image read row by row, as in the released code; its
        checkpoints require it.
    """

    patch: int = 16
    order: str = "patch"

    def __post_init__(self) -> None:
        require(self.patch > 0, f"pixels.patch is {self.patch}; it must be at least 1")
        require(
            self.order in PIXEL_ORDERS,
            f"pixels.order is {self.order!r}; choose one of {', '.join(PIXEL_ORDERS)}",
        )

    @property
    def latent_channels(self) -> int:
        """Values of a patch."""
        return 3 * self.patch**2

    @property
    def spatial_factor(self) -> int:
        """Pixels per patch in height and in width."""
        return self.patch

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame after the first; there is only one frame."""
        return 1

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Shape (1, h, w, C) of an image's patches.

        Raises:
          ValueError: a side is not divisible by `patch` (the nearest ones that are, are named), or it is a clip.
        """
        _require_divisible(height, width, self.patch)
        require(
            frames == 1,
            f"a clip of {frames} frames was given to a model that works on the pixels of images and has no video VAE; "
            f"give images (frames=1), or take a model with a VAE, such as the preset 'tuna_1p5b'",
        )
        return 1, height // self.patch, width // self.patch, self.latent_channels


def emoji_vae() -> VAEConfig:
    """The small Wan-architecture VAE that ships with the package; its statistics come with its weights."""
    return VAEConfig(
        latent_channels=16,
        encoder_width=20,
        decoder_width=32,
        blocks=1,
        latent_stats="custom",
        latent_mean=(0.0,) * 16,
        latent_std=(1.0,) * 16,
    )


def wan21_vae() -> VAEConfig:
    """The VAE of Wan 2.1, 8x in space, 4x in time, 16 channels; with 2x2 patches of its latents 16x, 64 channels."""
    return VAEConfig(
        latent_channels=64,
        encoder_width=96,
        decoder_width=96,
        latent_stats="wan2.1",
        residual=False,
        pixel_patch=1,
        latent_patch=2,
    )
