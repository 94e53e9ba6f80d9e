"""Sizes and settings of a model: frozen dataclasses that check their values."""

from __future__ import annotations

import dataclasses
from typing import Any

from tuna_jax.config.latents import PixelConfig, VAEConfig
from tuna_jax.utils.config_parsing import require

REMAT_POLICIES = ("none", "full", "dots", "dots_attention", "attention")
ATTENTION_BACKENDS = ("xla", "auto", "splash", "cudnn")
ENCODERS = ("siglip", "dinov3")
ACTIVATIONS = ("gelu", "gelu_pytorch_tanh", "silu")
DESIGNS = ("cascade", "decoupled", "late_fusion", "semantic_only", "latent_only")
PREDICTIONS = ("velocity", "clean")
TORCH_FLOAT32_EPS = 2.0**-23
"""The eps of a PyTorch RMSNorm that names none, for float32 inputs."""


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
        require(
            self.prediction in PREDICTIONS,
            f"flow.prediction is {self.prediction!r}; choose one of {', '.join(PREDICTIONS)}",
        )
        require(
            self.noise_scale > 0,
            f"flow.noise_scale is {self.noise_scale}; it must be greater than 0",
        )
        require(
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
        require(
            self.registers >= 0,
            f"representation.dinov3.registers is {self.registers}; it must be at least 0",
        )
        require(
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
        require(
            self.kind in ENCODERS,
            f"representation.kind is {self.kind!r}; choose one of {', '.join(ENCODERS)}",
        )
        require(
            self.kind != "dinov3" or self.width % (4 * self.heads) == 0,
            f"representation.width {self.width} is not divisible by 4 representation.heads, {4 * self.heads}; DINOv3's "
            f"rotary positions split a head into four",
        )
        require(
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
        require(
            self.heads % self.kv_heads == 0,
            f"language.heads {self.heads} is not a multiple of language.kv_heads {self.kv_heads}",
        )
        require(
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
        require(
            self.heads % self.kv_heads == 0,
            f"flow_head.heads {self.heads} is not a multiple of flow_head.kv_heads {self.kv_heads}",
        )
        require(
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
        require(
            self.vae is None or self.pixels is None,
            "the model has both a VAE (vae) and pixels; set one of them to None",
        )
        require(
            self.vae is not None or self.pixels is not None,
            "the model has neither a VAE (vae) nor pixels; set one of them",
        )
        require(
            self.design in DESIGNS,
            f"design is {self.design!r}; choose one of {', '.join(DESIGNS)}",
        )
        require(
            self.compute_dtype in ("bfloat16", "float32"),
            f"compute_dtype is {self.compute_dtype!r}; choose 'bfloat16' or 'float32'",
        )
        require(
            self.remat in REMAT_POLICIES,
            f"remat is {self.remat!r}; choose one of {', '.join(REMAT_POLICIES)}",
        )
        require(
            self.attention_backend in ATTENTION_BACKENDS,
            f"attention_backend is {self.attention_backend!r}; choose one of {', '.join(ATTENTION_BACKENDS)}",
        )
        require(self.text_chunk >= 0, f"text_chunk is {self.text_chunk}; it must be at least 0")
        require(self.time_frequencies % 2 == 0, f"time_frequencies {self.time_frequencies} is odd")

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
        """Whether the representation encoder runs on clean pixels, while the flow head generates latents."""
        return self.design in ("decoupled", "semantic_only")

    @property
    def image_patches(self) -> PixelConfig:
        """The patches of clean pixels that the encoder of such a design sees: one per latent position."""
        return self.pixels or PixelConfig(patch=self.space.spatial_factor)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dict, the inverse of `from_dict`; what checkpoints store."""
        return dataclasses.asdict(self)
