"""What weights are: whose layout they have, which components of TUNA they hold, and how big these are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tuna_jax.config import PRESETS, TunaConfig, from_dict, preset
from tuna_jax.conversion import config_check, convert_checkpoint, official_config, weight_map
from tuna_jax.conversion.gguf import open_gguf
from tuna_jax.conversion.pretrained_backbones import Parent, rows_of
from tuna_jax.conversion.readers import (
    Entry,
    SourceError,
    StateDict,
    merge,
    open_files,
    total_bytes,
)
from tuna_jax.utils.param_tree import flatten

# Layout -> what it is, and keys that every state dict of this layout has and no other.
LAYOUTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tuna": ("an official TUNA state dict", ("tuna.model.embed_tokens.weight",)),
    "tuna_jax": ("parameters of tuna_jax", ("language.embedding", "flow_head.final.linear.kernel")),
    "wan": ("the Wan 2.2 VAE, in its own names", ("encoder.conv1.weight", "decoder.conv1.weight")),
    "diffusers": (
        "the Wan 2.2 VAE, in diffusers' names",
        (
            "encoder.conv_in.weight",
            "quant_conv.weight",
            "decoder.mid_block.attentions.0.to_qkv.weight",
        ),
    ),
    "qwen": (
        "a Qwen2 or llama-style language model, in Hugging Face's names",
        ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"),
    ),
    "siglip": (
        "a SigLIP vision encoder, in Hugging Face's names",
        (
            "vision_model.encoder.layers.0.self_attn.q_proj.weight",
            "vision_model.post_layernorm.weight",
        ),
    ),
}
# What a SigLIP vision encoder has that transformers 5 saved alone: the same names without `vision_model.`
_BARE_SIGLIP = ("embeddings.patch_embedding.weight", "encoder.layers.0.self_attn.q_proj.weight")
# Layouts of a TUNA's parents; `parents.py` puts them together.
PARENTS = ("qwen", "siglip", "wan", "diffusers")

# First keys of a component -> its name, for each layout.
_COMPONENTS: dict[str, tuple[tuple[str, str], ...]] = {
    "tuna": (
        ("tuna.", "language transformer"),
        ("vision_model.", "representation encoder"),
        ("siglip_proj.", "connector"),
        ("time_embed.", "time embedding"),
        ("diffusion_head_", "flow head"),
        (weight_map.VAE_PREFIX, "VAE"),
    ),
    "tuna_jax": (
        ("language.", "language transformer"),
        ("representation.", "representation encoder"),
        ("connector.", "connector"),
        ("time_embedding.", "time embedding"),
        ("flow_head.", "flow head"),
        ("vae.", "VAE"),
    ),
    "wan": (("", "VAE"),),
    "diffusers": (("", "VAE"),),
    "qwen": (("", "language transformer"),),
    "siglip": (("vision_model.", "representation encoder"),),
}


@dataclasses.dataclass(frozen=True)
class Component:
    """A part of a checkpoint: how many tensors and numbers, how many bytes, in which dtypes."""

    name: str
    tensors: int
    parameters: int
    nbytes: int
    dtypes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a checkpoint is, without loading it.

    Attributes:
      layout: a key of LAYOUTS, or '' for none of them.
      components: its parts; what belongs to none is 'other'.
      files: where it lies.
      against: the config that `differences` is about: a preset's name, a file, or 'its own config'; '' if unknown.
      differences: every tensor that this config misses, does not know, or wants in another shape.
    """

    layout: str
    components: tuple[Component, ...]
    files: tuple[str, ...]
    against: str
    differences: str


def recognise(state: StateDict) -> str:
    """The layout of a state dict: a key of LAYOUTS, or ''."""
    for layout, (_, keys) in LAYOUTS.items():
        if all(key in state.entries for key in keys):
            return layout
    return ""


def open_weights(path: str | Path) -> StateDict:
    """Any weights that can come in: what `open_files` opens, and GGUF."""
    state = open_gguf(path) if Path(path).suffix == ".gguf" else open_files(path)
    if all(key in state.entries for key in _BARE_SIGLIP):
        return state.renamed(lambda key: f"vision_model.{key}")
    return state


def open_official(paths: Sequence[str | Path]) -> StateDict | list[Parent]:
    """One official TUNA state dict from one or several sources (a TUNA, and its VAE apart); or its parents.

    Raises:
      SourceError: a source of another layout, two sources with one tensor, a TUNA beside a parent other than a VAE.
    """
    opened = [(str(path), open_weights(path)) for path in paths]
    layouts = [recognise(state) for _, state in opened]
    for (path, state), layout in zip(opened, layouts, strict=True):
        if layout == "tuna_jax":
            raise SourceError(f"{path} holds parameters of tuna_jax already; `to_torch` turns them")
        if not layout:
            keys = ", ".join(list(state.entries)[:3])
            known = "; ".join(text for name, (text, _) in LAYOUTS.items() if name != "tuna_jax")
            raise SourceError(f"{path} is none of: {known}. Its first keys are: {keys}")
    found = list(zip(opened, layouts, strict=True))
    if "tuna" not in layouts:
        return [
            Parent(path, layout, state, config_check.read_config_json(path))
            for (path, state), layout in found
        ]
    parts = []
    for (path, state), layout in found:
        if layout not in ("tuna", "wan"):
            raise SourceError(
                f"{path} is {LAYOUTS[layout][0]}, and another source is a whole TUNA; give a TUNA "
                f"(and its VAE, in Wan's names), or its parents"
            )
        parts.append(
            state if layout == "tuna" else state.renamed(lambda key: weight_map.VAE_PREFIX + key)
        )
    return merge(parts)


def read_config(path: str | Path) -> TunaConfig:
    """A model's config from a JSON file: a golden set's `state_dict.json`, or overrides as an experiment's `model`.

    Raises:
      SourceError: no such file, or not JSON.
      ValueError: an unknown key in it.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise SourceError(f"{path} does not exist") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} is not JSON: {error}") from error
    if "tied_lm_head" in values and "config" in values:
        return official_config.config_from_official(values["config"], values["tied_lm_head"])
    return from_dict(values)


def summarize(state: StateDict, config: TunaConfig | None = None, against: str = "") -> Summary:
    """Says what weights are; reads none of them.

    Args:
      state: the weights.
      config: hold them against this; None takes the preset that most of their shapes fit.
      against: what to call `config`.
    """
    layout = recognise(state)
    if config is None and layout in ("tuna", "wan", "diffusers"):
        against = _nearest_preset(layout, state)
        config = preset(against)
    differences = "" if config is None else _differences(layout, config, state)
    return Summary(
        layout,
        tuple(_components(layout, state)),
        tuple(sorted({entry.file for entry in state.entries.values()})),
        against if config is not None and layout not in ("", "qwen", "siglip") else "",
        differences,
    )


def _expected(layout: str, config: TunaConfig) -> dict[str, tuple[int, ...]]:
    shapes = convert_checkpoint.parameter_shapes(config)
    if layout == "tuna_jax":
        return {key: leaf.shape for key, leaf in flatten(shapes).items()}
    official = weight_map.torch_shapes(config, shapes)
    if layout == "tuna":
        return official
    flat = flatten(shapes)
    return {
        row.torch: row.transform.torch_shape(flat[row.path].shape)
        for row in rows_of(layout, config)
    }


def _nearest_preset(layout: str, state: StateDict) -> str:
    def fitting(name: str) -> int:
        expected = _expected(layout, preset(name))
        return sum(state.entries[key].shape == expected.get(key) for key in state.entries)

    return max(PRESETS, key=fitting)


def _differences(layout: str, config: TunaConfig, state: StateDict) -> str:
    if not layout or layout in ("qwen", "siglip"):
        return ""  # they fit after changes that `parents.py` makes
    state = convert_checkpoint.without_buffers(state)
    expected, optional = _expected(layout, config), weight_map.aliases(config)
    if layout == "tuna" and not weight_map.has_vae(state.entries):
        expected = weight_map.without_vae(expected)
    if layout == "tuna_jax" and not any(key.startswith("vae.") for key in state.entries):
        expected = {key: shape for key, shape in expected.items() if not key.startswith("vae.")}
    try:
        weight_map.compare(expected, state.shapes, optional)
    except weight_map.ConversionError as error:
        return str(error)
    return ""


def _components(layout: str, state: StateDict) -> Iterable[Component]:
    groups: dict[str, dict[str, Entry]] = {}
    for key, entry in state.entries.items():
        names = (name for start, name in _COMPONENTS.get(layout, ()) if key.startswith(start))
        groups.setdefault(next(names, "other"), {})[key] = entry
    for name, entries in groups.items():
        nbytes = total_bytes(entries.values())
        numbers = sum(entry.nbytes // entry.dtype.itemsize for entry in entries.values())
        dtypes = tuple(sorted({str(entry.dtype) for entry in entries.values()}))
        yield Component(name, len(entries), numbers, nbytes, dtypes)
