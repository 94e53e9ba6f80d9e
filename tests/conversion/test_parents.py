"""What a parent holds is used, copied or refused, and the printed summary says which."""

import dataclasses
import json

import numpy as np
import pytest
from ml_dtypes import bfloat16
from safetensors.numpy import save_file

from tuna_jax import convert
from tuna_jax.config import preset
from tuna_jax.conversion import checkpoint_source, config_check, convert_checkpoint, weight_map
from tuna_jax.utils.param_tree import flatten

TINY = preset("tiny")
UNTIED = dataclasses.replace(TINY, language=dataclasses.replace(TINY.language, tied=False))
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def parent(config=TINY):
    """A language model in Hugging Face's names, with random weights."""
    shapes = flatten(convert_checkpoint.parameter_shapes(config))
    random, state = np.random.default_rng(0), {}
    for row in weight_map.language_rows(config, ""):
        shape = shapes[row.path].shape[row.layers is not None :]
        for key in row.names():
            state[key] = random.normal(size=row.transform.torch_shape(shape)).astype(np.float32)
    return state


def convert_parent(folder, state, declared=None, config=TINY, options=()):
    """Writes a parent and converts it; returns the exit status."""
    (folder / "parent").mkdir(exist_ok=True)
    save_file(state, folder / "parent" / "model.safetensors")
    if declared is not None:
        text = declared if isinstance(declared, str) else json.dumps(declared)
        (folder / "parent" / "config.json").write_text(text)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    arguments = ["from_torch", f"{folder}/parent", f"{folder}/ours", "--config"]
    return convert.main([*arguments, f"{folder}/config.json", *options])


def ours(folder, name):
    return np.asarray(checkpoint_source.open_parameters(folder / "ours")[1].read(name))


def test_layers_of_one_family_in_two_dtypes_are_refused(tmp_path, capsys):
    """Report 56: the float32 layer was cast to bfloat16, although every tensor keeps its own bits."""
    state = parent()
    key = "model.layers.0.self_attn.q_proj.weight"
    state[key] = state[key].astype(bfloat16)
    assert convert_parent(tmp_path, state) == 1
    error = capsys.readouterr().err
    assert "1 families have layers of several dtypes" in error and "--dtype" in error
    assert "model.layers.{}.self_attn.q_proj.weight (bfloat16, float32)" in error
    assert not (tmp_path / "ours").exists()
    assert convert_parent(tmp_path, state, options=["--dtype", "float32"]) == 0


def test_every_tensor_keeps_its_own_dtype(tmp_path, capsys):
    state = parent()
    state[TABLE] = state[TABLE].astype(np.float16)
    state["model.norm.weight"] = state["model.norm.weight"].astype(bfloat16)
    assert convert_parent(tmp_path, state) == 0
    assert ours(tmp_path, "language.embedding").dtype == np.float16
    assert ours(tmp_path, "language.norm.scale").dtype == bfloat16
    out = capsys.readouterr().out
    assert f"used:\n  {len(state)} tensors of {tmp_path}/parent (bfloat16, float16, float32)" in out


class TestHeads:
    """Tied or not in the parent, tied or not in the model."""

    def test_an_equal_head_is_left_out_of_a_tied_model(self, tmp_path, capsys):
        state = parent()
        assert convert_parent(tmp_path, state | {HEAD: state[TABLE].copy()}) == 0
        assert f"left out:\n  {HEAD}: equal to the token embedding" in capsys.readouterr().out

    def test_another_head_is_refused_by_a_tied_model(self, tmp_path, capsys):
        state = parent()
        assert convert_parent(tmp_path, state | {HEAD: state[TABLE] + 1}) == 1
        assert "language.tied=false" in capsys.readouterr().err

    def test_a_tied_parents_head_is_copied_to_an_untied_model(self, tmp_path, capsys):
        state = parent()
        declared = {"tie_word_embeddings": True}
        assert convert_parent(tmp_path, state, declared, config=UNTIED) == 0
        np.testing.assert_array_equal(ours(tmp_path, "language.head.kernel"), state[TABLE].T)
        assert f"copied:\n  {HEAD}: from {TABLE}" in capsys.readouterr().out

    def test_an_untied_parents_head_is_used_by_an_untied_model(self, tmp_path):
        state = parent(UNTIED)
        assert convert_parent(tmp_path, state, {"tie_word_embeddings": False}, config=UNTIED) == 0
        np.testing.assert_array_equal(ours(tmp_path, "language.head.kernel"), state[HEAD].T)

    @pytest.mark.parametrize("config", [TINY, UNTIED], ids=["tied", "untied"])
    def test_a_head_that_is_missing_is_an_error(self, tmp_path, capsys, config):
        assert convert_parent(tmp_path, parent(), {"tie_word_embeddings": False}, config) == 1
        assert f"has no {HEAD}" in capsys.readouterr().err

    def test_a_parent_that_contradicts_itself_is_an_error(self, tmp_path, capsys):
        assert convert_parent(tmp_path, parent(UNTIED), {"tie_word_embeddings": True}, UNTIED) == 1
        assert f"{HEAD} differs from {TABLE}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "declared",
    [
        {"use_sliding_window": True, "sliding_window": 4096},
        {"model_type": "mistral", "sliding_window": 4096},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"model_type": "gemma2"},
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"factor": 2.0}},
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
        {"hidden_act": "gelu"},
        {"hidden_activation": "gelu_pytorch_tanh"},
        {"attn_logit_softcapping": 50.0},
        {"final_logit_softcapping": 30.0},
        {"attention_bias": False},
        {"rms_norm_eps": 1e-5},
        {"layer_norm_eps": 1e-5},
        {"rope_theta": 1e4},
        {"rope_theta": "many"},
        {"partial_rotary_factor": 0.5},
        {"attention_multiplier": 0.5},
        {"query_pre_attn_scalar": 256},
        {"residual_multiplier": 0.22},
        {"logit_scale": 0.0625},
        {"scale_emb": 12},
        {"clip_qkv": 8.0},
        {"qk_norm": True},
        {"no_rope_layers": [1, 0]},
        {"is_causal": False},
        {"num_local_experts": 8},
        {"quantization_config": {"bits": 4}},
        {"text_config": {"attn_logit_softcapping": 50.0}},
    ],
    ids=lambda declared: next(iter(declared)),
)
def test_settings_that_change_the_mathematics_are_refused(declared):
    lines = config_check.disagreements(TINY, "qwen", declared, {}, parent())
    assert len(lines) == 1 and len(lines[0]) < 300


def test_the_settings_of_qwen_and_llama_are_accepted():
    language = TINY.language
    usual = {
        "model_type": "qwen2",
        "use_sliding_window": False,
        "sliding_window": 32768,
        "max_window_layers": 28,
        "hidden_act": "silu",
        "rope_scaling": None,
        "rope_theta": 1_000_000,
        "rms_norm_eps": 1e-06,
        "attention_dropout": 0.0,
        "layer_types": ["full_attention"] * 2,
        "rope_parameters": {"rope_type": "default"},
        "torch_dtype": "bfloat16",
        "max_position_embeddings": 32768,
        "use_cache": True,
        "hidden_size": language.width,
        "query_pre_attn_scalar": language.head_dim,
        "attention_multiplier": language.head_dim**-0.5,
        "logit_scale": 1.0,
        "head_dim": None,
        "is_causal": True,
        "qk_norm": False,
        "num_experts": 0,
        "no_rope_layers": [1, 1],
    }
    assert config_check.disagreements(TINY, "qwen", usual, {}, parent()) == []
    llama = {"model_type": "llama", "attention_bias": False, "mlp_bias": False, "pretraining_tp": 2}
    assert config_check.disagreements(TINY, "qwen", llama, {}, [HEAD]) == []


@pytest.mark.parametrize(
    "metadata",
    [
        {"rope.scaling.type": "linear"},
        {"attention.sliding_window": "4096"},
        {"final_logit_softcapping": "30.0"},
        {"expert_count": "8"},
        {"attention.scale": "0.5"},
        {"logit_scale": "0.1"},
    ],
    ids=lambda metadata: next(iter(metadata)),
)
def test_settings_of_a_gguf_file_are_refused(metadata):
    metadata = {"embedding_length": str(TINY.language.width), **metadata}
    assert len(config_check.disagreements(TINY, "qwen", {}, metadata)) == 1


def test_the_statistics_of_a_vae_are_compared():
    mean, std = map(list, TINY.vae.statistics)
    declared = {"latents_mean": mean, "latents_std": std}
    assert config_check.disagreements(TINY, "diffusers", declared, {}) == []
    (line,) = config_check.disagreements(
        TINY, "diffusers", declared | {"latents_std": [2.0] * 8}, {}
    )
    assert "latents_std" in line


@pytest.mark.parametrize(
    ("content", "words"),
    [(POINTER, "Git LFS"), ("<html>", "web page"), ("", "empty"), ("[]", "not a config")],
    ids=["pointer", "page", "empty", "array"],
)
def test_a_config_that_is_none_is_named(tmp_path, capsys, content, words):
    assert convert_parent(tmp_path, parent(), content) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path}/parent/config.json" in error and words in error


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model.gguf", "model.bin", "model.safetensors.index.json"]
)
def test_weights_that_are_a_pointer_are_named(tmp_path, capsys, name):
    pytest.importorskip({"gguf": "gguf", "bin": "torch"}.get(name.rsplit(".", 1)[1], "json"))
    (tmp_path / name).write_text(POINTER)
    assert convert.main(["inspect", f"{tmp_path}/{name}"]) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path}/{name}" in error and "Git LFS" in error
