"""Whose layout weights have, what they contain, and which sources belong together."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tuna_jax.config import preset
from tuna_jax.conversion import convert_checkpoint, detect_format, weight_map
from tuna_jax.conversion.readers import SourceError, open_files
from tuna_jax.utils.param_tree import flatten

TINY = preset("tiny")
SHAPES = convert_checkpoint.parameter_shapes(TINY)


def zeros(shapes):
    return {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}


def official():
    return zeros(weight_map.torch_shapes(TINY, SHAPES))


def ours():
    return zeros({key: leaf.shape for key, leaf in flatten(SHAPES).items()})


def signature(layout):
    """The fewest tensors that have a layout."""
    return zeros(dict.fromkeys(detect_format.LAYOUTS[layout][1], (2, 2)))


def write(folder, tensors, name="weights.safetensors"):
    save_file(tensors, folder / name)
    return folder / name


@pytest.mark.parametrize("layout", list(detect_format.LAYOUTS))
def test_each_layout_is_detected_by_its_keys(tmp_path, layout):
    state = open_files(write(tmp_path, signature(layout)))
    assert detect_format.detect_layout(state) == layout


@pytest.mark.parametrize(("layout", "tensors"), [("tuna", official), ("tuna_jax", ours)])
def test_whole_models_are_detected(tmp_path, layout, tensors):
    assert detect_format.detect_layout(open_files(write(tmp_path, tensors()))) == layout


@pytest.mark.parametrize("layout", ["wan", "diffusers", "qwen", "siglip", "tuna_jax"])
def test_a_missing_key_is_another_layout(tmp_path, layout):
    tensors = signature(layout)
    del tensors[detect_format.LAYOUTS[layout][1][-1]]
    tensors["something.else"] = np.zeros(2, np.float32)
    assert detect_format.detect_layout(open_files(write(tmp_path, tensors))) == ""


def test_a_bare_siglip_gets_its_prefix(tmp_path):
    keys = detect_format.LAYOUTS["siglip"][1]
    bare = [key.removeprefix("vision_model.") for key in keys]
    bare += ["embeddings.patch_embedding.weight"]
    state = detect_format.open_weights(write(tmp_path, zeros(dict.fromkeys(bare, (2, 2)))))
    assert detect_format.detect_layout(state) == "siglip"
    assert all(key.startswith("vision_model.") for key in state.entries)


def test_summaries_list_components_with_sizes(tmp_path):
    state = open_files(write(tmp_path, official()))
    summary = detect_format.summarize(state)
    assert (summary.layout, summary.compared_with, summary.differences) == ("tuna", "tiny", "")
    names = {component.name for component in summary.components}
    assert {"language transformer", "representation encoder", "flow head", "VAE"} <= names
    assert "other" not in names
    assert sum(part.tensors for part in summary.components) == len(state.entries)
    assert all(part.nbytes == 4 * part.parameters for part in summary.components)
    assert all(part.dtypes == ("float32",) for part in summary.components)


def test_summaries_name_what_differs(tmp_path):
    tensors = official()
    key = "tuna.model.embed_tokens.weight"
    tensors[key] = np.zeros((3, 3), np.float32)
    tensors["stray.weight"] = np.zeros(2, np.float32)
    summary = detect_format.summarize(open_files(write(tmp_path, tensors)), TINY, "a config")
    assert summary.compared_with == "a config"
    assert key in summary.differences and "stray.weight" in summary.differences
    assert [part.tensors for part in summary.components if part.name == "other"] == [1]


def test_a_model_without_its_vae_does_not_differ(tmp_path):
    tensors = {k: v for k, v in official().items() if not k.startswith(weight_map.VAE_PREFIX)}
    assert detect_format.summarize(open_files(write(tmp_path, tensors))).differences == ""


def test_an_official_model_and_its_vae_become_one(tmp_path):
    whole = official()
    prefix = weight_map.VAE_PREFIX
    body = {key: value for key, value in whole.items() if not key.startswith(prefix)}
    vae = {k.removeprefix(prefix): v for k, v in whole.items() if k.startswith(prefix)}
    paths = [write(tmp_path, body, "tuna.safetensors"), write(tmp_path, vae, "vae.safetensors")]
    state = detect_format.open_official(paths)
    assert set(state.entries) == set(whole)


def test_backbones_are_returned_with_their_layouts(tmp_path):
    paths = [
        write(tmp_path, signature(name), f"{name}.safetensors")
        for name in detect_format.BACKBONES[:3]
    ]
    parents = detect_format.open_official(paths)
    assert [parent.layout for parent in parents] == ["qwen", "siglip", "wan"]


@pytest.mark.parametrize(
    ("layouts", "named"),
    [(["tuna_jax"], "tuna_jax"), (["tuna", "qwen"], "qwen"), ([""], r"a\.b")],
)
def test_sources_that_do_not_belong_together_are_named(tmp_path, layouts, named):
    paths = []
    for layout in layouts:
        tensors = signature(layout) if layout else {"a.b": np.zeros(2, np.float32)}
        paths.append(write(tmp_path, tensors, f"{layout or 'unknown'}.safetensors"))
    with pytest.raises(SourceError, match=named):
        detect_format.open_official(paths)


def test_configs_are_read_from_json(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"preset": "tiny", "language": {"layers": 3}}))
    assert detect_format.read_config(path).language.layers == 3
    path.write_text("{")
    with pytest.raises(SourceError, match=r"config\.json"):
        detect_format.read_config(path)
    with pytest.raises(SourceError, match=r"none\.json"):
        detect_format.read_config(tmp_path / "none.json")
