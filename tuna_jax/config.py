"""Configuration of a model: frozen dataclasses, named presets, and checks.

All sizes of TUNA share the same code. A preset is a starting point; `from_dict` applies overrides to it and rejects
unknown keys, so that a typo in an experiment is an error.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from tuna_jax.utils.config_parsing import override

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

REMAT_POLICIES = ("none", "full", "dots", "dots_attention", "attention")
ATTENTION_BACKENDS = ("xla", "auto", "splash", "cudnn")
LATENT_STATS = ("tuna", "wan2.2", "wan2.1", "custom")
ENCODERS = ("siglip", "dinov3")
ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "silu")
DESIGNS = ("cascade", "decoupled", "late_fusion", "semantic_only", "latent_only")
PREDICTIONS = ("velocity", "clean")
PIXEL_ORDERS = ("raster", "patch")
TORCH_FLOAT32_EPS = 2.0**-23
"""The eps of a PyTorch RMSNorm that names none, for float32 inputs."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


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
        _require(
            self.pixel_patch in (1, 2), f"vae.pixel_patch is {self.pixel_patch}; choose 1 or 2"
        )
        _require(
            self.latent_patch > 0 and self.latent_channels % self.latent_patch**2 == 0,
            f"vae.latent_patch is {self.latent_patch}; it must be at least 1, and vae.latent_channels, "
            f"{self.latent_channels}, divisible by its square",
        )
        odd = [m for m in self.multipliers[1:] if self.decoder_width * m % 2]
        _require(
            self.residual or not odd,
            f"vae.decoder_width {self.decoder_width} times the multiplier {odd[:1]} is odd; without vae.residual, "
            f"up-sampling halves the width",
        )
        _require(
            len(self.halve_time) == len(self.multipliers) - 1,
            f"vae.halve_time has {len(self.halve_time)} entries; it requires one for every level except the last, "
            f"{len(self.multipliers) - 1}",
        )
        _require(
            self.latent_stats in LATENT_STATS,
            f"vae.latent_stats is {self.latent_stats!r}; choose one of {', '.join(LATENT_STATS)}",
        )
        mean, std = self.statistics
        _require(
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
        _require(
            frames > 0 and (frames - 1) % time == 0,
            f"{frames} frames is not 1 + {time}k; the nearest counts that are: "
            f"{', '.join(str(f) for f in (below, below + time) if f > 0)}",
        )
        return 1 + (frames - 1) // time, height // space, width // space, self.latent_channels


def _require_divisible(height: int, width: int, factor: int) -> None:
    for name, size in (("height", height), ("width", width)):
        low = size // factor * factor
        _require(
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
        _require(self.patch > 0, f"pixels.patch is {self.patch}; it must be at least 1")
        _require(
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
        _require(
            frames == 1,
            f"a clip of {frames} frames was given to a model that works on the pixels of images and has no video VAE; "
            f"give images (frames=1), or take a model with a VAE, such as the preset 'tuna_1p5b'",
        )
        return 1, height // self.patch, width // self.patch, self.latent_channels


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """What the flow head predicts, and the probability path (model.md sections 2 and 12).

    Attributes:
      prediction: 'velocity', or 'clean': the clean image, with a loss on the velocity that follows from it. Models that
        predict it take the conventions of JiT (arXiv 2511.13720), as the released pixel models do: the last update of
        Heun's method is one of Euler's, and the ends of a guidance interval are not in it.
      noise_scale: standard deviation of the state at t = 0.
      min_remaining: smallest `1 - t` by which a clean prediction is divided.
    """

    prediction: str = "velocity"
    noise_scale: float = 1.0
    min_remaining: float = 0.05

    def __post_init__(self) -> None:
        _require(
            self.prediction in PREDICTIONS,
            f"flow.prediction is {self.prediction!r}; choose one of {', '.join(PREDICTIONS)}",
        )
        _require(
            self.noise_scale > 0,
            f"flow.noise_scale is {self.noise_scale}; it must be greater than 0",
        )
        _require(
            0 < self.min_remaining < 1,
            f"flow.min_remaining is {self.min_remaining}; it must be between 0 and 1",
        )

    @property
    def predicts_clean(self) -> bool:
        """Whether the head predicts the clean image."""
        return self.prediction == "clean"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DINOv3Config:
    """What DINOv3 (arXiv 2508.10104) has and SigLIP has not, with the values of its ViT-S/16, B/16 and L/16.

    Attributes:
      registers: number of register tokens, which attend and are attended to like patches and are dropped at the end.
      rope_base: base of the rotary positions.
      layer_scale: initial value of the scales of attention's and the MLP's outputs.
      query_bias, key_bias, value_bias, out_bias, mlp_bias: which linear layers have biases.
      gated: whether the MLP is `down(activation(gate(x)) * up(x))`; otherwise it is `down(activation(up(x)))`.
      activation: of the MLP: 'gelu' (exact), 'gelu_pytorch_tanh' or 'silu'.
    """

    registers: int = 4
    rope_base: float = 100.0
    layer_scale: float = 1.0
    query_bias: bool = True
    key_bias: bool = False
    value_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    gated: bool = False
    activation: str = "gelu"

    def __post_init__(self) -> None:
        _require(
            self.registers >= 0,
            f"representation.dinov3.registers is {self.registers}; it must be at least 0",
        )
        _require(
            self.activation in ACTIVATIONS,
            f"representation.dinov3.activation is {self.activation!r}; choose one of {', '.join(ACTIVATIONS)}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepresentationConfig:
    """The representation encoder over latents or pixels (model.md sections 3 and 12).

    Attributes:
      kind: 'siglip': SigLIP, and SigLIP2 with a fixed resolution (`models/representation.py`); 'dinov3': DINOv3
        (`models/dinov3.py`).
      width, heads, mlp: sizes of a layer.
      layers: those in use: all except the original's last.
      grid: side of the grid of tokens that the encoder starts from; SigLIP's table of positions has `grid^2` rows, and
        DINOv3 has none.
      norm_eps: eps of the LayerNorms; 1e-6 for SigLIP, 1e-5 for DINOv3.
      dinov3: more constants of 'dinov3'; 'siglip' ignores them.
    """

    kind: str = "siglip"
    width: int = 1152
    layers: int = 26
    heads: int = 16
    mlp: int = 4304
    grid: int = 32
    norm_eps: float = 1e-6
    dinov3: DINOv3Config = DINOv3Config()

    def __post_init__(self) -> None:
        _require(
            self.kind in ENCODERS,
            f"representation.kind is {self.kind!r}; choose one of {', '.join(ENCODERS)}",
        )
        _require(
            self.kind != "dinov3" or self.width % (4 * self.heads) == 0,
            f"representation.width {self.width} is not divisible by 4 representation.heads, {4 * self.heads}; DINOv3's "
            f"rotary positions split a head into four",
        )
        _require(
            self.width % self.heads == 0,
            f"representation.width {self.width} is not divisible by representation.heads {self.heads}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """The Qwen2.5 transformer (model.md section 6)."""

    vocabulary: int = 151669
    width: int = 1536
    layers: int = 28
    heads: int = 12
    kv_heads: int = 2
    head_dim: int = 128
    mlp: int = 8960
    rope_base: float = 1e6
    norm_eps: float = 1e-6
    tied: bool = True

    def __post_init__(self) -> None:
        _require(
            self.heads % self.kv_heads == 0,
            f"language.heads {self.heads} is not a multiple of language.kv_heads {self.kv_heads}",
        )
        _require(
            self.head_dim % 2 == 0,
            f"language.head_dim {self.head_dim} is odd; RoPE pairs dimensions",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowHeadConfig:
    """The flow-matching head (model.md section 7). Its width is the language transformer's."""

    layers: int = 40
    heads: int = 24
    kv_heads: int = 8
    head_dim: int = 64
    mlp: int = 8960
    norm_eps: float = 1e-5
    visual_rope_base: float = 1e4
    text_rope_base: float = 5e5
    text_rope_factor: float = 32.0
    text_rope_low: float = 1.0
    text_rope_high: float = 4.0
    text_rope_original_length: int = 8192

    def __post_init__(self) -> None:
        _require(
            self.heads % self.kv_heads == 0,
            f"flow_head.heads {self.heads} is not a multiple of flow_head.kv_heads {self.kv_heads}",
        )
        _require(
            self.head_dim % 16 == 0,
            f"flow_head.head_dim {self.head_dim} is not a multiple of 16; the 3-D RoPE "
            "splits it 1/4, 3/8, 3/8 into pairs",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TunaConfig:
    """A complete TUNA.

    Attributes:
      vae: the frozen VAE; None for models that work on pixels.
      pixels: how a model without a VAE reads and predicts pixels; None for models with one.
      design: what turns latents (or patches of pixels) into visual tokens. 'cascade': the representation encoder and
        the connector (TUNA, Tuna-R); 'latent_only': one linear layer and a norm (Tuna-2, on pixels); 'late_fusion':
        both, concatenated and fused (Show-o2); 'decoupled': the encoder on clean pixels for images that are given, one
        linear layer and a norm for the image that is generated; 'semantic_only': the encoder on clean pixels, which
        cannot generate.
      flow: what the flow head predicts.
      representation, language, flow_head: the other parts; designs without an encoder ignore `representation`.
      patch_norm_eps: eps of the norm of 'latent_only'. The released code names none, and PyTorch then takes one that
        depends on its version and on the dtype (model.md section 13).
      mask_token: whether there is a learned token that hides visual tokens in training (`LoopSettings.masking`).
      time_frequencies: width of the sinusoidal embedding of flow time.
      compute_dtype: dtype of activations and matmuls, 'bfloat16' or 'float32'. Parameters, norms, modulation, RoPE
        angles, softmax and losses are always float32.
      remat: what a scanned layer recomputes in the backward pass: 'none': nothing; 'full': everything; 'dots':
        everything except the outputs of matmuls with parameters; 'attention': everything except attention's outputs;
        'dots_attention': everything except both.
      unroll: whether to unroll scans over layers in the compiled program, which is faster for few small layers on CPU;
        loops over solver steps and tokens then also take unstacked layers there (`models/cpu_fast_paths.py`).
      attention_backend: 'xla', 'auto', 'splash' or 'cudnn', see `models/attention.attention`.
      text_chunk: number of tokens per row whose logits the text loss computes at a time, only at tokens with a label;
        0: the logits of all tokens at once.
    """

    vae: VAEConfig | None = VAEConfig()
    pixels: PixelConfig | None = None
    design: str = "cascade"
    flow: FlowConfig = FlowConfig()
    representation: RepresentationConfig = RepresentationConfig()
    language: LanguageConfig = LanguageConfig()
    flow_head: FlowHeadConfig = FlowHeadConfig()
    patch_norm_eps: float = TORCH_FLOAT32_EPS
    mask_token: bool = False
    time_frequencies: int = 256
    compute_dtype: str = "bfloat16"
    remat: str = "full"
    unroll: bool = False
    attention_backend: str = "xla"
    text_chunk: int = 0

    def __post_init__(self) -> None:
        _require(
            self.vae is None or self.pixels is None,
            "the model has both a VAE (vae) and pixels; set one of them to None",
        )
        _require(
            self.vae is not None or self.pixels is not None,
            "the model has neither a VAE (vae) nor pixels; set one of them",
        )
        _require(
            self.design in DESIGNS,
            f"design is {self.design!r}; choose one of {', '.join(DESIGNS)}",
        )
        _require(
            self.compute_dtype in ("bfloat16", "float32"),
            f"compute_dtype is {self.compute_dtype!r}; choose 'bfloat16' or 'float32'",
        )
        _require(
            self.remat in REMAT_POLICIES,
            f"remat is {self.remat!r}; choose one of {', '.join(REMAT_POLICIES)}",
        )
        _require(
            self.attention_backend in ATTENTION_BACKENDS,
            f"attention_backend is {self.attention_backend!r}; choose one of {', '.join(ATTENTION_BACKENDS)}",
        )
        _require(self.text_chunk >= 0, f"text_chunk is {self.text_chunk}; it must be at least 0")
        _require(self.time_frequencies % 2 == 0, f"time_frequencies {self.time_frequencies} is odd")

    @property
    def space(self) -> VAEConfig | PixelConfig:
        """What the latents of this model are: those of its VAE, or patches of pixels."""
        space = self.vae or self.pixels
        assert space is not None
        return space

    @property
    def video_vae(self) -> VAEConfig:
        """The VAE's config, for code that requires one.

        Raises:
          ValueError: the model works on pixels.
        """
        if self.vae is None:
            raise ValueError(
                "this model works on pixels and has no VAE; take a model with one, such as the preset 'tuna_1p5b'"
            )
        return self.vae

    @property
    def has_encoder(self) -> bool:
        """Whether the design has a representation encoder."""
        return self.design != "latent_only"

    @property
    def sees_pixels(self) -> bool:
        """Whether the representation encoder runs on clean pixels, beside latents that the flow head generates."""
        return self.design in ("decoupled", "semantic_only")

    @property
    def image_patches(self) -> PixelConfig:
        """The patches of clean pixels that the encoder of such a design sees: one per latent position."""
        return self.pixels or PixelConfig(patch=self.space.spatial_factor)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dict, the inverse of `from_dict`; what checkpoints store."""
        return dataclasses.asdict(self)


def _tuna_1p5b() -> TunaConfig:
    return TunaConfig(text_chunk=256)


def _tuna_7b() -> TunaConfig:
    return TunaConfig(
        language=LanguageConfig(width=3584, heads=28, kv_heads=4, mlp=18944, tied=False),
        flow_head=FlowHeadConfig(layers=16, heads=56, kv_heads=14, mlp=18944),
        text_chunk=256,
    )


def _on_pixels(config: TunaConfig, *, encoder: bool, order: str = "raster") -> TunaConfig:
    """The same language transformer and flow head on pixels: Tuna-R with the representation encoder, Tuna-2 without."""
    return dataclasses.replace(
        config,
        vae=None,
        pixels=PixelConfig(order=order),
        flow=FlowConfig(prediction="clean", noise_scale=2.0),
        design="cascade" if encoder else "latent_only",
        mask_token=not encoder,
    )


def _tuna_r_7b() -> TunaConfig:
    """Tuna-R, `tuna_2r_pixel_7b` in the released code."""
    return _on_pixels(_tuna_7b(), encoder=True)


def _tuna_2_7b() -> TunaConfig:
    """Tuna-2, `tuna_2_pixel_7b` in the released code."""
    return _on_pixels(_tuna_7b(), encoder=False)


def _tuna_r_1p5b() -> TunaConfig:
    """Tuna-R with the parts of `tuna_1p5b`. There is no released checkpoint, so it predicts patches, not strips."""
    return _on_pixels(_tuna_1p5b(), encoder=True, order="patch")


def _tuna_2_1p5b() -> TunaConfig:
    """Tuna-2 with the parts of `tuna_1p5b`. There is no released checkpoint, so it predicts patches, not strips."""
    return _on_pixels(_tuna_1p5b(), encoder=False, order="patch")


def _tuna_smol() -> TunaConfig:
    """Initialised from SmolLM2-135M and SigLIP2 base: the smallest TUNA with a pre-trained language transformer."""
    return TunaConfig(
        representation=RepresentationConfig(width=768, layers=11, heads=12, mlp=3072),
        language=LanguageConfig(
            vocabulary=49_156,  # SmolLM2's 49,152 tokens and TUNA's four.
            width=576,
            layers=30,
            heads=9,
            kv_heads=3,
            head_dim=64,
            mlp=1536,
            rope_base=1e5,
            norm_eps=1e-5,
        ),
        flow_head=FlowHeadConfig(layers=8, heads=9, kv_heads=3, mlp=1536),
        text_chunk=256,
    )


def _tiny() -> TunaConfig:
    """Every part at its smallest useful size, for tests and compile checks."""
    return TunaConfig(
        vae=VAEConfig(
            latent_channels=8,
            encoder_width=8,
            decoder_width=8,
            blocks=1,
            latent_stats="custom",
            latent_mean=(0.0,) * 8,
            latent_std=(1.0,) * 8,
        ),
        representation=RepresentationConfig(width=32, layers=2, heads=2, mlp=64, grid=4),
        language=LanguageConfig(
            vocabulary=512, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, mlp=128
        ),
        flow_head=FlowHeadConfig(layers=2, heads=2, kv_heads=1, head_dim=32, mlp=128),
        compute_dtype="float32",
        remat="none",
    )


def _mid() -> TunaConfig:
    """For speed measurements on a machine without an accelerator (docs/performance.md); not for training."""
    return TunaConfig(
        representation=RepresentationConfig(width=384, layers=5, heads=6, mlp=1536, grid=16),
        language=LanguageConfig(
            vocabulary=8192, width=512, layers=8, heads=8, kv_heads=2, head_dim=64, mlp=2048
        ),
        flow_head=FlowHeadConfig(layers=8, heads=8, kv_heads=2, mlp=2048),
        compute_dtype="float32",
        remat="none",
        unroll=True,
        text_chunk=64,
    )


def _emoji() -> TunaConfig:
    """The demo's model: images of 64x64 pixels as 4x4 latents of 16 channels, small enough to train on a laptop."""
    return TunaConfig(
        vae=emoji_vae(),
        representation=RepresentationConfig(width=144, layers=2, heads=3, mlp=384, grid=4),
        language=LanguageConfig(
            vocabulary=640, width=144, layers=4, heads=3, kv_heads=3, head_dim=48, mlp=384
        ),
        flow_head=FlowHeadConfig(layers=2, heads=3, kv_heads=3, head_dim=48, mlp=384),
        compute_dtype="float32",
        remat="none",
        unroll=True,
    )


def _tiny_pixels(encoder: bool) -> TunaConfig:
    return _on_pixels(_tiny(), encoder=encoder)


def _mid_pixels(encoder: bool) -> TunaConfig:
    return _on_pixels(_mid(), encoder=encoder)


def _emoji_pixels(encoder: bool) -> TunaConfig:
    """The demo's model on pixels: images of 64x64 pixels as 4x4 patches."""
    return _on_pixels(_emoji(), encoder=encoder, order="patch")


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


PRESETS = {
    "tiny": _tiny,
    "mid": _mid,
    "emoji": _emoji,
    "tuna_smol": _tuna_smol,
    "tuna_1p5b": _tuna_1p5b,
    "tuna_7b": _tuna_7b,
    "tuna_r_1p5b": _tuna_r_1p5b,
    "tuna_r_7b": _tuna_r_7b,
    "tuna_2_1p5b": _tuna_2_1p5b,
    "tuna_2_7b": _tuna_2_7b,
    "tuna_r_tiny": functools.partial(_tiny_pixels, True),
    "tuna_2_tiny": functools.partial(_tiny_pixels, False),
    "tuna_r_mid": functools.partial(_mid_pixels, True),
    "tuna_2_mid": functools.partial(_mid_pixels, False),
    "tuna_r_emoji": functools.partial(_emoji_pixels, True),
    "tuna_2_emoji": functools.partial(_emoji_pixels, False),
}


def preset(name: str) -> TunaConfig:
    """The preset `name`.

    Raises:
      ValueError: the name is unknown; the names of all presets are listed.
    """
    _require(name in PRESETS, f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()


def from_dict(values: Mapping[str, Any]) -> TunaConfig:
    """A config from nested overrides of a preset.

    Args:
      values: field names of `TunaConfig` to values or nested mappings; 'preset' (default 'tiny') names the preset.

    Raises:
      ValueError: an unknown key (named, with the nearest known key), a value of the wrong type, or values that
        contradict each other.
    """
    rest = dict(values)
    return override(preset(rest.pop("preset", "tiny")), rest, "model")
