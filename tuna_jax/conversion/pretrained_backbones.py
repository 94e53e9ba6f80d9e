"""The parents of a fresh TUNA: a language model, a vision encoder and a VAE, put together as one checkpoint.

As the released code starts training (model.md sections 1, 3 and 6):

    Qwen2.5        all of it; the token table is cut or filled up to the model's vocabulary
    SigLIP         its layers but the last one; the patch embedding is new, a 1x1 convolution on latents
    Wan 2.2 VAE    all of it
    new            patch embedding, connector, time embedding, flow head (AdaLN-Zero), as `models.tuna.init` makes them
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from tuna_jax.config import TunaConfig
from tuna_jax.conversion import config_check, convert_checkpoint, weight_map
from tuna_jax.conversion.convert_checkpoint import Specs
from tuna_jax.conversion.readers import SourceError, StateDict
from tuna_jax.models import tuna
from tuna_jax.models.representation import interpolate_positions
from tuna_jax.utils.param_tree import flatten

POSITIONS = ("fresh", "interpolate")

# What a parent has and TUNA has no use for, and why.
LEFT_OUT: dict[str, tuple[tuple[str, str], ...]] = {
    "qwen": (),
    "siglip": (
        ("vision_model.post_layernorm.", "TUNA takes the features before it"),
        ("vision_model.head.", "pooling, which TUNA does not do"),
        ("vision_model.embeddings.patch_embedding.", "of pixels; TUNA's is new, of latents"),
        ("text_model.", "the text half of a SigLIP"),
        ("logit_", "of the contrastive loss"),
    ),
    "wan": (),
    "diffusers": (),
}


@dataclasses.dataclass(frozen=True)
class Parent:
    """One source of a fresh TUNA.

    Attributes:
      path: where it lies.
      layout: 'qwen', 'siglip', 'wan' or 'diffusers'.
      state: its tensors.
      declared: its `config.json`, where it has one.
    """

    path: str
    layout: str
    state: StateDict
    declared: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def rows_of(parent: str, config: TunaConfig) -> list[weight_map.Row]:
    """The rows of the table that a parent of this layout fills, in its own names."""
    if parent == "qwen":
        return weight_map.language_rows(config, "")
    if parent == "siglip":
        fresh = ("representation.patch.kernel", "representation.patch.bias")
        return [row for row in weight_map.representation_rows(config) if row.path not in fresh]
    return weight_map.vae_rows(
        config.vae, "", weight_map.DIFFUSERS if parent == "diffusers" else weight_map.WAN
    )


def to_ours(
    config: TunaConfig,
    parents: Sequence[Parent],
    open_sink: Callable[[Specs], Any],
    *,
    positions: str = "fresh",
    seed: int = 0,
    dtype: str = "",
    progress: bool = False,
) -> dict[str, list[str]]:
    """Assembles a fresh TUNA.

    Args:
      config: the model.
      parents: at most one language model, vision encoder and VAE each. What is missing is new, but a VAE is left out.
      open_sink: as in `transfer.to_ours`.
      positions: 'fresh', or 'interpolate' the vision encoder's table to the model's grid (bicubic).
      seed: of what is new.
      dtype: cast all to it; empty keeps what parents have, and float32 for what is new.
      progress: show a bar.

    Returns:
      What became of what: 'new' -> our paths, 'left out' -> the parents' keys with reasons, 'adapted' -> our paths.

    Raises:
      SourceError: two parents of one kind, an unknown choice of positions, or a parent whose own config disagrees.
      ConversionError: tensors of a parent that are missing, foreign or wrongly shaped; all are listed.
    """
    if positions not in POSITIONS:
        raise SourceError(f"positions is {positions!r}; choose one of {', '.join(POSITIONS)}")
    shapes = {
        path: leaf.shape
        for path, leaf in flatten(convert_checkpoint.parameter_shapes(config)).items()
    }
    notes: dict[str, list[str]] = {"new": [], "left out": [], "adapted": []}
    readers: dict[str, _Reader] = {}
    for parent in parents:
        for path, reader in _readers(config, parent, shapes, positions, notes).items():
            if path in readers:
                raise SourceError(
                    f"{parent.path} and another source both give {path}; give one of each kind"
                )
            readers[path] = reader
    if not any(path.startswith("vae.") for path in readers):
        shapes = {path: shape for path, shape in shapes.items() if not path.startswith("vae.")}
    wanted = np.dtype(np.float32)
    specs = {
        path: (
            shape,
            convert_checkpoint.DTYPES[dtype]
            if dtype
            else getattr(readers.get(path), "dtype", wanted),
        )
        for path, shape in shapes.items()
    }
    notes["new"] = [path for path in specs if path not in readers]
    new = _fresh(config, notes["new"], seed)
    with open_sink(specs) as sink:
        for path, (shape, to) in tqdm(specs.items(), unit="parameter", disable=not progress):
            if path not in readers:
                sink.write(path, np.asarray(new(path)).astype(to))
            elif readers[path].layers is None:
                sink.write(path, readers[path].read(0).astype(to))
            else:
                for index in range(shape[0]):
                    sink.write(path, readers[path].read(index).astype(to), index)
    return notes


def to_parent(
    config: TunaConfig,
    params: StateDict,
    layout: str,
    open_sink: Callable[[Specs], Any],
    *,
    dtype: str = "",
    progress: bool = False,
) -> int:
    """One part of our parameters in the layout of its parent; returns how many tensors that are.

    Args:
      config: the model.
      params: our parameters by dotted name.
      layout: 'qwen' (the language transformer), 'siglip' (the representation encoder, patch embedding included),
        'wan' or 'diffusers' (the VAE).
      open_sink, dtype, progress: as in `transfer.to_torch`.

    Raises:
      ConversionError: the parameters do not have this part; all that is missing is listed.
    """
    rows = rows_of(layout, config)
    if layout == "siglip":
        rows = weight_map.representation_rows(config)
    return convert_checkpoint.write_rows(
        rows, {}, params, open_sink, dtype=dtype, progress=progress
    )


def parent_config(config: TunaConfig, layout: str) -> dict[str, Any]:
    """The `config.json` with which Hugging Face's or diffusers' own classes load a part; empty for 'wan'."""
    if layout == "qwen":
        sizes = config.language
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "vocab_size": sizes.vocabulary,
            "hidden_size": sizes.width,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads,
            "head_dim": sizes.head_dim,
            "intermediate_size": sizes.mlp,
            "rope_theta": sizes.rope_base,
            "rms_norm_eps": sizes.norm_eps,
            "tie_word_embeddings": sizes.tied,
        }
    if layout == "siglip":
        sizes = config.representation
        return {
            "architectures": ["SiglipVisionModel"],
            "model_type": "siglip_vision_model",
            "hidden_size": sizes.width,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "intermediate_size": sizes.mlp,
            "layer_norm_eps": sizes.norm_eps,
            "hidden_act": "gelu_pytorch_tanh",
            "image_size": sizes.grid,
            "patch_size": 1,
            "num_channels": config.vae.latent_channels,
            "vision_use_head": False,
        }
    if layout == "diffusers":
        sizes = config.vae
        mean, std = sizes.statistics
        return {
            "_class_name": "AutoencoderKLWan",
            "base_dim": sizes.encoder_width,
            "decoder_base_dim": sizes.decoder_width,
            "z_dim": sizes.latent_channels,
            "dim_mult": list(sizes.multipliers),
            "num_res_blocks": sizes.blocks,
            "temperal_downsample": list(sizes.halve_time),
            "attn_scales": [],
            "dropout": 0.0,
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_spatial": sizes.spatial_factor,
            "scale_factor_temporal": sizes.temporal_factor,
            "latents_mean": list(mean),
            "latents_std": list(std),
        }
    return {}


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Gives a parameter of ours, or its layer `index`."""

    read: Callable[[int], np.ndarray]
    layers: int | None
    dtype: np.dtype[Any]


def _fresh(config: TunaConfig, paths: Sequence[str], seed: int) -> Callable[[str], jax.Array]:
    """Gives parameters as `tuna.init` makes them: one at a time, what is not asked for being compiled away."""

    def make(key: jax.Array, wanted: Sequence[str]) -> dict[str, jax.Array]:
        everything = flatten(tuna.init(config, key))
        return {path: everything[path] for path in wanted}

    key = jax.random.key(seed)
    make = jax.jit(make, static_argnums=1)
    shapes = jax.eval_shape(lambda: make(key, tuple(paths)))
    if sum(leaf.size for leaf in shapes.values()) < 1 << 28:
        together = make(key, tuple(paths))  # small: tracing dominates
        return lambda path: together[path]
    return lambda path: make(key, (path,))[path]


def _readers(
    config: TunaConfig,
    parent: Parent,
    shapes: dict[str, tuple[int, ...]],
    positions: str,
    notes: dict[str, list[str]],
) -> dict[str, _Reader]:
    """Readers of what a parent gives, after a check of all of its tensors."""
    state = convert_checkpoint.without_buffers(parent.state)
    rows = rows_of(parent.layout, config)
    wanted: dict[str, tuple[int, ...]] = {}
    for row in rows:
        shape = shapes[row.path] if row.layers is None else shapes[row.path][1:]
        wanted |= dict.fromkeys(row.names(), row.transform.torch_shape(shape))
    found = _used(config, parent.layout, state, notes)
    repair = _adaptations(config, parent.layout, found, wanted, positions, notes)
    # Shapes first: a parent of another size has them all wrong, and its own numbers say no more.
    weight_map.compare(
        wanted, {key: wanted[key] if key in repair else s for key, s in found.items()}, repair
    )
    lines = config_check.disagreements(config, parent.layout, parent.declared, state.metadata)
    if lines:
        raise SourceError(
            f"{parent.path} fits in shape, but computes otherwise than this configuration:"
            + "".join(f"\n  {line}" for line in lines)
        )
    readers = {}
    for row in rows:
        names = row.names()
        if any(key in repair and repair[key] is None for key in names):
            continue  # stays new
        known = [state.entries[key].dtype for key in names if key in state.entries]

        def read(index: int, row: weight_map.Row = row, names: list[str] = names) -> np.ndarray:
            key = names[index]
            tensor: Any = state.read(key) if key in state.entries else None
            change = repair.get(key)
            return row.transform.to_ours(tensor if change is None else change(tensor))

        readers[row.path] = _Reader(read, row.layers, known[0] if known else np.dtype(np.float32))
    return readers


def _used(
    config: TunaConfig, layout: str, state: StateDict, notes: dict[str, list[str]]
) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a parent without what TUNA leaves out."""
    left_out = list(LEFT_OUT[layout])
    if layout == "siglip":
        kept = config.representation.layers
        left_out.append(
            (f"vision_model.encoder.layers.{kept}.", "the last layer, which TUNA drops")
        )
    if layout == "qwen" and config.language.tied:
        left_out.append(("lm_head.weight", "the token table again: this configuration ties them"))
    used = {}
    for key, entry in state.entries.items():
        reasons = [why for start, why in left_out if key.startswith(start)]
        if reasons:
            notes["left out"].append(f"{key}: {reasons[0]}")
        else:
            used[key] = entry.shape
    return used


Change = Callable[[Any], np.ndarray]


def _adaptations(
    config: TunaConfig,
    layout: str,
    found: dict[str, tuple[int, ...]],
    wanted: dict[str, tuple[int, ...]],
    positions: str,
    notes: dict[str, list[str]],
) -> dict[str, Change | None]:
    """Keys whose tensor must be changed to fit, and how; None leaves the parameter as it is when new."""
    repair: dict[str, Change | None] = {}
    if layout == "qwen":
        rows = config.language.vocabulary
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            if key in wanted and key in found and found[key][0] != rows:
                repair[key] = lambda tensor: _resize_rows(tensor, rows)
                notes["adapted"].append(f"{key}: {found[key][0]:,} rows to {rows:,}")
        missing = [key for key in wanted if key not in found]
        without = [key for key in missing if key.endswith("_proj.bias")]
        if without and len(without) == 3 * config.language.layers:
            # A llama has no biases on query, key and value; zeros are the same.
            for key in without:
                repair[key] = lambda tensor, shape=wanted[key]: np.zeros(shape, np.float32)
            notes["adapted"].append("query, key and value get biases of zero: this model has none")
        if "lm_head.weight" in missing and "lm_head.weight" in wanted:
            repair["lm_head.weight"] = None
    elif layout == "siglip":
        key = "vision_model.embeddings.position_embedding.weight"
        if key in found and found[key] != wanted[key]:
            source, grid = round(found[key][0] ** 0.5), config.representation.grid
            if positions == "fresh" or source**2 != found[key][0]:
                repair[key] = None
            else:
                repair[key] = lambda tensor: np.asarray(
                    interpolate_positions(jnp.asarray(tensor, jnp.float32), source, grid, grid)
                ).astype(tensor.dtype)
                notes["adapted"].append(f"{key}: {source}x{source} to {grid}x{grid}, bicubic")
    return repair


def _resize_rows(tensor: np.ndarray, rows: int) -> np.ndarray:
    """The first rows of a token table; rows that it lacks are normal with a standard deviation of 0.02."""
    if rows <= len(tensor):
        return tensor[:rows]
    random = np.random.default_rng(0)
    new = 0.02 * random.standard_normal((rows - len(tensor), tensor.shape[1]), np.float32)
    return np.concatenate([tensor, new.astype(tensor.dtype)])
