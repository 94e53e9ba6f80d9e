"""Detects the layout of weights, the components of TUNA that they hold, and the sizes of these."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tuna_jax.config import PRESETS, TunaConfig, from_dict, preset, wan21_vae
from tuna_jax.conversion import config_check, convert_checkpoint, official_config, weight_map
from tuna_jax.conversion.gguf import open_gguf
from tuna_jax.conversion.pretrained_backbones import VISION, Backbone, rows_of
from tuna_jax.conversion.readers import (
    Entry,
    SourceError,
    StateDict,
    merge,
    open_files,
    total_bytes,
)
from tuna_jax.utils import nonfinite_values
from tuna_jax.utils.param_tree import flatten
from tuna_jax.utils.text_files import read_json

# Layout -> description, and keys that every state dict of this layout has and no other layout has.
LAYOUTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tuna": ("an official TUNA state dict", ("tuna.model.embed_tokens.weight",)),
    "tuna_jax": ("parameters of tuna_jax", ("language.embedding", "flow_head.final.linear.kernel")),
    "wan": (
        "a Wan VAE (2.2 or 2.1), in its own names",
        ("encoder.conv1.weight", "decoder.conv1.weight"),
    ),
    "diffusers": (
        "a Wan VAE (2.2 or 2.1), in diffusers' names",
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
    "dinov3": (
        "a DINOv3 vision transformer, in Hugging Face's names",
        (
            "embeddings.cls_token",
            "layer.0.attention.q_proj.weight",
            "layer.0.layer_scale1.lambda1",
        ),
    ),
}
# Keys of a SigLIP vision encoder saved separately by transformers 5: without the prefix `vision_model.`.
_BARE_SIGLIP = ("embeddings.patch_embedding.weight", "encoder.layers.0.self_attn.q_proj.weight")
# A DINOv3 whose file was written without transformers' own renaming has `model.layer.` for `layer.`.
_NESTED_DINOV3 = ("embeddings.cls_token", "model.layer.0.layer_scale1.lambda1")
# Layouts of pretrained backbones; `pretrained_backbones.py` assembles them.
BACKBONES = ("qwen", "siglip", "wan", "diffusers", "dinov3")
# They match a config after the adaptations of `pretrained_backbones.py`.
_ADAPTED = ("qwen", "siglip", "dinov3")

# Layout -> (prefix of keys, name of the component).
_COMPONENTS: dict[str, tuple[tuple[str, str], ...]] = {
    "tuna": (
        ("tuna.", "language transformer"),
        ("vision_model.", "representation encoder"),
        ("siglip_proj.", "connector"),
        ("vision_encoder.", "patch embedding"),
        ("mask_token", "mask token"),
        ("time_embed.", "time embedding"),
        ("diffusion_head_", "flow head"),
        (weight_map.VAE_PREFIX, "VAE"),
    ),
    "tuna_jax": (
        ("language.", "language transformer"),
        ("representation.", "representation encoder"),
        ("connector.", "connector"),
        ("embedding.", "patch embedding"),
        ("projection.", "projection"),
        ("fusion.", "fusion"),
        ("mask_token", "mask token"),
        ("time_embedding.", "time embedding"),
        ("flow_head.", "flow head"),
        ("vae.", "VAE"),
    ),
    "wan": (("", "VAE"),),
    "diffusers": (("", "VAE"),),
    "qwen": (("", "language transformer"),),
    "siglip": (("vision_model.", "representation encoder"),),
    "dinov3": (("", "representation encoder"),),
}


@dataclasses.dataclass(frozen=True)
class Component:
    """A component of a checkpoint: numbers of tensors and of parameters, size in bytes, and dtypes."""

    name: str
    tensors: int
    parameters: int
    nbytes: int
    dtypes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Summary:
    """A description of a checkpoint, made without reading its tensors.

    Attributes:
      layout: a key of LAYOUTS, or '' if unknown.
      components: its components; tensors of no component are in 'other'.
      files: its files.
      compared_with: the config of `differences`: a preset's name, a file, or 'its own config'; '' if there is none.
      differences: every tensor that is missing, unexpected, or of another shape than in this config.
      config: the config that was compared with; None without a comparison.
    """

    layout: str
    components: tuple[Component, ...]
    files: tuple[str, ...]
    compared_with: str
    differences: str
    config: TunaConfig | None = None


def detect_layout(state: StateDict) -> str:
    """The layout of a state dict: a key of LAYOUTS, or ''."""
    for layout, (_, keys) in LAYOUTS.items():
        if all(key in state.entries for key in keys):
            return layout
    return ""


def open_weights(path: str | Path) -> StateDict:
    """Opens weights of any supported file format: those of `open_files`, and GGUF."""
    state = open_gguf(path) if Path(path).suffix == ".gguf" else open_files(path)
    if all(key in state.entries for key in _BARE_SIGLIP):
        return state.renamed(lambda key: f"vision_model.{key}")
    if all(key in state.entries for key in _NESTED_DINOV3):
        return state.renamed(lambda key: key.removeprefix("model."))
    return state


def open_official(paths: Sequence[str | Path]) -> StateDict | list[Backbone]:
    """An official TUNA state dict from one or several sources (TUNA, and its VAE separately); or pretrained backbones.

    Raises:
      SourceError: a source of another layout, a tensor in two sources, or TUNA together with a backbone other than a
        VAE.
    """
    opened = [(str(path), open_weights(path)) for path in paths]
    layouts = [detect_layout(state) for _, state in opened]
    for (path, state), layout in zip(opened, layouts, strict=True):
        if layout == "tuna_jax":
            raise SourceError(
                f"{path} already has parameters of tuna_jax; `to_torch` converts them to PyTorch"
            )
        if not layout:
            keys = ", ".join(list(state.entries)[:3])
            layouts_text = "; ".join(
                text for name, (text, _) in LAYOUTS.items() if name != "tuna_jax"
            )
            raise SourceError(
                f"{path} has an unknown layout; the known ones are: {layouts_text}. Its first keys are: {keys}"
            )
    sources = list(zip(opened, layouts, strict=True))
    if "tuna" not in layouts:
        return [
            Backbone(
                path,
                layout,
                state,
                _declared(path, layout),
                _declared(path, layout, "preprocessor_config.json") if layout in VISION else {},
            )
            for (path, state), layout in sources
        ]
    parts = []
    for (path, state), layout in sources:
        if layout not in ("tuna", "wan"):
            raise SourceError(
                f"{path} is {LAYOUTS[layout][0]}, and another source is a full TUNA model; pass either a TUNA "
                f"model (and its VAE, in Wan's names), or pretrained backbones"
            )
        parts.append(
            state if layout == "tuna" else state.renamed(lambda key: weight_map.VAE_PREFIX + key)
        )
    return merge(parts)


def _declared(path: str, layout: str, name: str = "config.json") -> dict[str, Any]:
    """A JSON file next to a backbone's weights; {} for formats that store their sizes with the weights, or nowhere."""
    if layout == "wan" or Path(path).suffix == ".gguf":
        return {}
    return config_check.read_config_json(path, name)


def read_config(path: str | Path) -> TunaConfig:
    """A model's config from a JSON file: `state_dict.json` of a golden set, or overrides as in an experiment's `model`.

    Raises:
      SourceError: the file does not exist, or is not JSON.
      ValueError: the file has an unknown key.
    """
    path = Path(path)
    try:
        values = read_json(path)
    except FileNotFoundError as error:
        raise SourceError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise SourceError(str(error)) from error
    if not isinstance(values, dict):
        raise SourceError(f"{path} is a {type(values).__name__}, not a config: an object {{...}}")
    if "tied_lm_head" in values and "config" in values:
        return official_config.config_from_official(values["config"], values["tied_lm_head"])
    return from_dict(values)


def summarize(state: StateDict, config: TunaConfig | None = None, config_name: str = "") -> Summary:
    """Describes weights without reading their tensors.

    Args:
      state: the weights.
      config: to compare with; None takes the preset whose shapes match best.
      config_name: name of `config` in the summary.
    """
    layout = detect_layout(state)
    if config is None and layout in ("tuna", "wan", "diffusers"):
        config_name, config = _nearest(layout, state)
    differences = "" if config is None else _differences(layout, config, state)
    return Summary(
        layout,
        tuple(_components(layout, state)),
        tuple(sorted({entry.file for entry in state.entries.values()})),
        config_name if config is not None and layout not in ("", *_ADAPTED) else "",
        differences,
        config,
    )


def family(state: StateDict) -> str:
    """Which model an official state dict is: 'TUNA', 'Tuna-R' or 'Tuna-2'."""
    if "vision_encoder.patch_embedding.weight" in state.entries:
        return "Tuna-2 (pixels, no encoder)"
    patch = state.entries.get("vision_model.embeddings.patch_embedding.weight")
    on_pixels = patch is not None and patch.shape[2:] != (1, 1)
    return "Tuna-R (an encoder on pixels)" if on_pixels else "TUNA (an encoder on a VAE's latents)"


def not_finite(state: StateDict) -> list[tuple[str, int, int]]:
    """The tensors with NaN or infinity: key, number of such values, and size. Reads every tensor, one at a time."""
    found = []
    for key in state.entries:
        tensor = state.read(key)
        if bad := nonfinite_values.count(tensor):
            found.append((key, bad, tensor.size))
    return found


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


def _nearest(layout: str, state: StateDict) -> tuple[str, TunaConfig]:
    """The name and config of the preset whose shapes match best, and of Wan 2.1's VAE, which no preset has."""
    configs = {name: preset(name) for name in PRESETS}
    if layout != "tuna":
        configs = {name: config for name, config in configs.items() if config.vae is not None}
        wan21 = dataclasses.replace(preset("tuna_1p5b"), vae=wan21_vae())
        configs["tuna_1p5b with config.wan21_vae()"] = wan21

    def matching(name: str) -> int:
        expected = _expected(layout, configs[name])
        return sum(state.entries[key].shape == expected.get(key) for key in state.entries)

    name = max(configs, key=matching)
    return name, configs[name]


def _differences(layout: str, config: TunaConfig, state: StateDict) -> str:
    if not layout or layout in _ADAPTED:
        return ""
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
