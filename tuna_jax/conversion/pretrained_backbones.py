"""Assembles a new TUNA from pretrained backbones: a language model, a vision encoder and a VAE.

As the released code starts training (model.md sections 1, 3 and 6):

    Qwen2.5        all of it; the token embedding is truncated or extended to the model's vocabulary
    SigLIP         all layers except the last. On latents the patch embedding is new, a convolution of latents; on
    or DINOv3      pixels it is the backbone's, changed to take pixels in [-1, 1] (`backbone.for_our_pixels`)
    Wan VAE        all of it, 2.2 or 2.1
    new            patch embedding, connector, time embedding, flow head (AdaLN-Zero), initialised by `models.tuna.init`
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from tuna_jax.config import TunaConfig
from tuna_jax.conversion import config_check, convert_checkpoint, vae_weight_map, weight_map
from tuna_jax.conversion.backbone import (
    LAYERS,
    PATCH,
    VISION,
    Backbone,
    check_kind,
    for_our_pixels,
)
from tuna_jax.conversion.convert_checkpoint import Specs
from tuna_jax.conversion.readers import SourceError, StateDict
from tuna_jax.conversion.weight_rows import Row
from tuna_jax.models import tuna
from tuna_jax.models.representation import interpolate_positions
from tuna_jax.utils import nonfinite_values, seeds
from tuna_jax.utils.param_tree import flatten

POSITIONS = ("fresh", "interpolate")

# Prefixes of tensors that TUNA does not use -> reason.
LEFT_OUT: dict[str, tuple[tuple[str, str], ...]] = {
    "qwen": (),
    "siglip": (
        ("vision_model.post_layernorm.", "TUNA uses the features before it"),
        ("vision_model.head.", "pooling, which TUNA does not use"),
        ("text_model.", "the text encoder of SigLIP"),
        ("logit_", "for the contrastive loss"),
    ),
    "dinov3": (
        ("norm.", "TUNA uses the features before it"),
        ("embeddings.mask_token", "for DINOv3's own pre-training"),
    ),
    "wan": (),
    "diffusers": (),
}


def rows_of(layout: str, config: TunaConfig) -> list[Row]:
    """The rows of the weight map for a backbone of this layout, in its own names."""
    if layout == "qwen":
        return weight_map.language_rows(config, "")
    if layout in VISION:
        rows = weight_map.representation_rows(config, "vision_model." if layout == "siglip" else "")
        new = ("representation.patch.kernel", "representation.patch.bias")
        return rows if config.pixels else [row for row in rows if row.path not in new]
    return vae_weight_map.vae_rows(
        config.video_vae,
        "",
        vae_weight_map.DIFFUSERS if layout == "diffusers" else vae_weight_map.WAN,
    )


def to_ours(
    config: TunaConfig,
    backbones: Sequence[Backbone],
    open_sink: Callable[[Specs], Any],
    *,
    positions: str = "",
    seed: int = 0,
    dtype: str = "",
    progress: bool = False,
    check_weights: bool = True,
) -> dict[str, list[str]]:
    """Assembles a new TUNA.

    Args:
      config: the model.
      backbones: at most one language model, one vision encoder and one VAE. A missing language model or vision encoder
        is initialised randomly; a missing VAE is left out.
      open_sink: as in `convert_checkpoint.to_ours`.
      positions: 'fresh' initialises SigLIP's position table if its grid is another than the model's; 'interpolate'
        resizes it (bicubic). Empty: 'interpolate' on pixels, and 'fresh' on latents as in the released code. (On pixels
        the released code leaves the table random, N(0, 1); model.md section 12.)
      seed: of new parameters.
      dtype: cast all parameters to this dtype; empty keeps the backbones' dtypes, and float32 for new parameters.
      progress: show a progress bar.
      check_weights: whether to check that the tensors of backbones are finite.

    Returns:
      'used' -> the tensors of each backbone, 'copied' -> keys with their source, 'new' -> our paths, 'left out' -> the
      backbones' keys with reasons, 'adapted' -> keys with their adaptation.

    Raises:
      SourceError: two backbones of one kind, an unknown value of `positions`, a backbone with a different config, or
        one of a kind that the model does not have.
      ConversionError: tensors of a backbone are missing, unexpected or wrongly shaped, layers of one family have
        several dtypes and `dtype` is empty, or with `check_weights` a tensor is not finite; the message lists all.
    """
    positions = positions or ("interpolate" if config.pixels else "fresh")
    if positions not in POSITIONS:
        raise SourceError(f"positions is {positions!r}; it must be one of {', '.join(POSITIONS)}")
    shapes = {
        path: leaf.shape
        for path, leaf in flatten(convert_checkpoint.parameter_shapes(config)).items()
    }
    notes: dict[str, list[str]] = {
        name: [] for name in ("used", "copied", "new", "left out", "adapted")
    }
    readers: dict[str, _Reader] = {}
    for backbone in backbones:
        own = _readers(config, backbone, shapes, positions, notes, mixed=bool(dtype))
        for path, reader in own.items():
            if path in readers:
                raise SourceError(
                    f"{backbone.path} and another source both have {path}; pass one backbone of each kind"
                )
            readers[path] = reader
    if not any(path.startswith("vae.") for path in readers):
        shapes = {path: shape for path, shape in shapes.items() if not path.startswith("vae.")}
    float32 = np.dtype(np.float32)
    specs = {
        path: (
            shape,
            convert_checkpoint.DTYPES[dtype]
            if dtype
            else getattr(readers.get(path), "dtype", float32),
        )
        for path, shape in shapes.items()
    }
    notes["new"] = [path for path in specs if path not in readers]
    new = _new_parameters(config, notes["new"], seed)
    with open_sink(specs) as sink:
        for path, (shape, to) in tqdm(specs.items(), unit="parameter", disable=not progress):
            if path not in readers:
                sink.write(path, np.asarray(new(path)).astype(to))
            elif readers[path].layers is None:
                sink.write(path, _finite(readers[path].read(0), path, check_weights).astype(to))
            else:
                for index in range(shape[0]):
                    tensor = _finite(readers[path].read(index), f"{path}[{index}]", check_weights)
                    sink.write(path, tensor.astype(to), index)
    return notes


def _finite(tensor: np.ndarray, name: str, check: bool) -> np.ndarray:
    """The tensor of a backbone; ConversionError if it is not finite: training cannot start from it."""
    if check and (bad := nonfinite_values.count(tensor)):
        raise weight_map.ConversionError(
            f"{nonfinite_values.describe([(name, bad, tensor.size)])}: weights that are NaN or infinite. Download the "
            "backbone again; --no-check_weights takes it as it is"
        )
    return tensor


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads a parameter of ours, or its layer `index`."""

    read: Callable[[int], np.ndarray]
    layers: int | None
    dtype: np.dtype[Any]


def _new_parameters(
    config: TunaConfig, paths: Sequence[str], seed: int
) -> Callable[[str], jax.Array]:
    """A function that returns parameters initialised by `tuna.init`, one at a time.

    XLA removes the parameters that are not requested from each program.
    """

    def make(key: jax.Array, paths: Sequence[str]) -> dict[str, jax.Array]:
        params = flatten(tuna.init(config, key))
        return {path: params[path] for path in paths}

    key = seeds.key(seed)
    make = jax.jit(make, static_argnums=1)
    shapes = jax.eval_shape(lambda: make(key, tuple(paths)))
    if sum(leaf.size for leaf in shapes.values()) < 1 << 28:
        params = make(key, tuple(paths))  # For a small model tracing dominates.
        return lambda path: params[path]
    return lambda path: make(key, (path,))[path]


def _readers(
    config: TunaConfig,
    backbone: Backbone,
    shapes: dict[str, tuple[int, ...]],
    positions: str,
    notes: dict[str, list[str]],
    *,
    mixed: bool,
) -> dict[str, _Reader]:
    """Readers of the parameters that a backbone provides, after a check of all of its tensors.

    `mixed` says whether layers of one family may have several dtypes.
    """
    state = convert_checkpoint.without_buffers(backbone.state)
    check_kind(config, backbone, state)
    rows = rows_of(backbone.layout, config)
    expected: dict[str, tuple[int, ...]] = {}
    for row in rows:
        shape = shapes[row.path] if row.layers is None else shapes[row.path][1:]
        expected |= dict.fromkeys(row.names(), row.transform.torch_shape(shape))
    used = _used(config, backbone, state, notes)
    repair = _adaptations(config, backbone, used, expected, positions, notes)
    # Shapes are checked first: a backbone of another size has many wrong shapes, and its declared numbers add nothing.
    adapted = {key: expected[key] if key in repair else shape for key, shape in used.items()}
    weight_map.compare(expected, adapted, repair)
    lines = config_check.disagreements(
        config, backbone.layout, backbone.declared, state.metadata, state.entries
    )
    if lines:
        raise SourceError(
            f"{backbone.path} has matching shapes, but its config differs from this one:"
            + "".join(f"\n  {line}" for line in lines)
        )
    kinds = ", ".join(sorted({str(state.entries[key].dtype) for key in used}))
    notes["used"].append(f"{len(used)} tensors of {backbone.path} ({kinds})")
    readers, families = {}, []
    for row in rows:
        names = row.names()
        if any(key in repair and repair[key] is None for key in names):
            continue  # It remains a new parameter.
        sources = [_COPIES.get(key, key) if key not in state.entries else key for key in names]
        dtypes = [state.entries[key].dtype for key in sources if key in state.entries]
        if len(set(dtypes)) > 1 and not mixed:
            families.append((row.torch, dtypes))

        def read(index: int, row: Row = row, names: list[str] = names) -> np.ndarray:
            key = names[index]
            tensor: Any = state.read(key) if key in state.entries else None
            change = repair.get(key)
            return row.transform.to_ours(tensor if change is None else change(tensor))

        readers[row.path] = _Reader(read, row.layers, dtypes[0] if dtypes else np.dtype(np.float32))
    convert_checkpoint.check_dtypes(families)
    return readers


# A tensor that a file may leave out -> the tensor that it equals then.
_COPIES = {"lm_head.weight": "model.embed_tokens.weight"}


def _check_head(config: TunaConfig, backbone: Backbone, state: StateDict) -> None:
    """Raises SourceError if the head of a language model, tied or not, is not the one that the model has."""
    head, table = "lm_head.weight", "model.embed_tokens.weight"
    declared = config_check.part_of("qwen", backbone.declared).get("tie_word_embeddings")
    if head not in state.entries:
        if declared is False:
            raise SourceError(
                f"{backbone.path} has no {head}, and its config.json says that the head is not tied to the token "
                f"embedding (tie_word_embeddings); a file of weights is missing"
            )
        return
    # An untied model takes the head as it is; only a file that contradicts itself needs the comparison.
    if not config.language.tied and declared is not True:
        return
    if table not in state.entries or same_bits(state, head, table):
        return
    if declared is True:
        raise SourceError(
            f"{backbone.path}: config.json says that the head is tied to the token embedding (tie_word_embeddings), "
            f"and {head} differs from {table}; correct one of them"
        )
    raise SourceError(
        f"{backbone.path}: {head} differs from {table}, and this config ties the head to the embedding; take a config "
        f"with language.tied=false"
    )


def same_bits(state: StateDict, first: str, second: str) -> bool:
    """Whether two tensors are equal to the bit; a NaN equals itself."""
    entries = state.entries[first], state.entries[second]
    if entries[0].shape != entries[1].shape or entries[0].dtype != entries[1].dtype:
        return False
    tensors = (state.read(first), state.read(second))
    one, other = (tensor.view(f"u{tensor.dtype.itemsize}") for tensor in tensors)
    return np.array_equal(one, other)


def _used(
    config: TunaConfig, backbone: Backbone, state: StateDict, notes: dict[str, list[str]]
) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the tensors of a backbone that TUNA uses."""
    layout = backbone.layout
    if layout == "qwen":
        _check_head(config, backbone, state)
    left_out = list(LEFT_OUT[layout])
    if layout in VISION:
        kept = config.representation.layers
        left_out.append((f"{LAYERS[layout]}.{kept}.", "the last layer, which TUNA drops"))
        if config.pixels is None:
            left_out.append(
                (f"{PATCH[layout]}.", "for pixels; the patch embedding of latents is new")
            )
        tokens = "embeddings.register_tokens"
        if layout == "dinov3" and tokens in state.entries and not state.entries[tokens].shape[1]:
            left_out.append((tokens, "empty"))
    if layout == "qwen" and config.language.tied:
        left_out.append(("lm_head.weight", "equal to the token embedding: this config ties them"))
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
    backbone: Backbone,
    used: dict[str, tuple[int, ...]],
    expected: dict[str, tuple[int, ...]],
    positions: str,
    notes: dict[str, list[str]],
) -> dict[str, Change | None]:
    """Key -> change that adapts its tensor to the model; None leaves the parameter new."""
    repair: dict[str, Change | None] = {}
    layout = backbone.layout
    if (
        layout in VISION
        and config.pixels
        and used.get(key := f"{PATCH[layout]}.weight") == expected[key]
    ):
        repair |= for_our_pixels(backbone, notes)
    if layout == "qwen":
        rows = config.language.vocabulary
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            if key in expected and key in used and used[key][0] != rows:
                repair[key] = lambda tensor: _resize_rows(tensor, rows)
                notes["adapted"].append(f"{key}: {used[key][0]:,} rows to {rows:,}")
        missing = [key for key in expected if key not in used]
        without = [key for key in missing if key.endswith("_proj.bias")]
        if without and len(without) == 3 * config.language.layers:
            # Llama has no biases of query, key and value; zeros are equivalent.
            for key in without:
                repair[key] = lambda tensor, shape=expected[key]: np.zeros(shape, np.float32)
            notes["adapted"].append("query, key and value get zero biases: this model has none")
        if "lm_head.weight" in missing and "lm_head.weight" in expected:
            table = "model.embed_tokens.weight"
            repair["lm_head.weight"] = lambda _: _resize_rows(backbone.state.read(table), rows)
            notes["copied"].append(f"lm_head.weight: from {table}, to which this model ties it")
    elif layout == "siglip":
        key = "vision_model.embeddings.position_embedding.weight"
        if key in used and used[key] != expected[key]:
            source, grid = round(used[key][0] ** 0.5), config.representation.grid
            if positions == "fresh" or source**2 != used[key][0]:
                repair[key] = None
            else:
                repair[key] = lambda tensor: np.asarray(
                    interpolate_positions(jnp.asarray(tensor, jnp.float32), source, grid, grid)
                ).astype(tensor.dtype)
                notes["adapted"].append(f"{key}: {source}x{source} to {grid}x{grid}, bicubic")
    return repair


def _resize_rows(tensor: np.ndarray, rows: int) -> np.ndarray:
    """The first rows of a token embedding; missing rows are normal with a standard deviation of 0.02."""
    if rows <= len(tensor):
        return tensor[:rows]
    random = np.random.default_rng(0)
    new = 0.02 * random.standard_normal((rows - len(tensor), tensor.shape[1]), np.float32)
    return np.concatenate([tensor, new.astype(tensor.dtype)])
