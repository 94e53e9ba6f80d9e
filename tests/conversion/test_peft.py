"""Adapters in PEFT's files: PEFT loads ours onto a Qwen2.5, we load PEFT's, with equal logits."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.fixtures import adapters
from tests.fixtures.random_params import random_like
from tuna_jax import convert
from tuna_jax.adapters.settings import LoraSettings
from tuna_jax.config import preset
from tuna_jax.conversion import checkpoint_source, convert_checkpoint, peft, weight_map
from tuna_jax.models import tuna
from tuna_jax.training.weights_file import export_model
from tuna_jax.utils.param_tree import unflatten

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
library = pytest.importorskip("peft")

TINY = preset("tiny")
LANGUAGE = TINY.language
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def qwen(seed=0):
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(
        vocab_size=LANGUAGE.vocabulary,
        hidden_size=LANGUAGE.width,
        num_hidden_layers=LANGUAGE.layers,
        num_attention_heads=LANGUAGE.heads,
        num_key_value_heads=LANGUAGE.kv_heads,
        intermediate_size=LANGUAGE.mlp,
        rope_theta=LANGUAGE.rope_base,
        rms_norm_eps=LANGUAGE.norm_eps,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    model = transformers.Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A TUNA of ours whose language transformer is the tiny Qwen2.5."""
    folder = tmp_path_factory.mktemp("peft")
    qwen().save_pretrained(folder / "qwen")
    (folder / "config.json").write_text(json.dumps(TINY.to_dict()))
    source = [f"{folder}/qwen", f"{folder}/model", "--config", f"{folder}/config.json"]
    assert convert.main(["from_torch", *source]) == 0
    return folder / "model"


TOKENS = np.random.default_rng(0).integers(0, LANGUAGE.vocabulary, (2, 12))


def ours(state):
    """The logits of our language transformer with these parameters."""
    flat = {name: jnp.asarray(state.read(name)) for name in state.entries}
    params = unflatten({k: v for k, v in flat.items() if not k.startswith("vae.")})
    spans = jnp.full((2, 1, 2), -1)
    hidden = tuna.forward(TINY, params, jnp.asarray(TOKENS, jnp.int32), spans).hidden
    return np.asarray(tuna.logits(TINY, params, hidden))


def theirs(torch_model):
    with torch.no_grad():
        return torch_model(torch.from_numpy(TOKENS)).logits.numpy()


def assert_equal_logits(state, torch_model, before) -> None:
    expected = theirs(torch_model)
    np.testing.assert_allclose(ours(state), expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(before - expected).max() > 1e-2 * np.abs(expected).max(), "it changes the logits"


def test_peft_loads_ours_onto_a_qwen(model, tmp_path, capsys) -> None:
    settings = LoraSettings(
        targets=("all-linear",), rank=3, alpha=5.0, trained=("language.norm", "connector.norm")
    )
    adapters.write(tmp_path / "adapter", model, settings)
    command = ["to_peft", f"{tmp_path}/adapter", f"{tmp_path}/peft", "--part=language"]
    assert convert.main(command) == 0
    printed = capsys.readouterr().out
    assert "left out" in printed and "flow_head.layers.out.lora.a" in printed
    assert "language.layers.query" not in printed
    loaded = library.PeftModel.from_pretrained(qwen(), tmp_path / "peft").eval()
    merged = checkpoint_source.open_parameters(tmp_path / "adapter")[1]
    assert_equal_logits(merged, loaded, theirs(qwen()))
    stored = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert stored["target_modules"] == sorted(EVERY)
    assert (stored["r"], stored["lora_alpha"], stored["modules_to_save"]) == (
        3,
        5.0,
        ["model.norm"],
    )
    assert convert.main(command) != 0, "an existing folder is not overwritten"


CASES = {
    "plain": {"r": 4, "lora_alpha": 12, "target_modules": EVERY},
    "attention": {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj", "v_proj"]},
    "rank-stabilised": {"r": 4, "lora_alpha": 8, "target_modules": EVERY, "use_rslora": True},
    "one layer": {"r": 4, "target_modules": EVERY, "layers_to_transform": [1]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": EVERY,
        "rank_pattern": {"q_proj": 2, "layers.0.mlp.up_proj": 6},
        "alpha_pattern": {"k_proj": 3, "layers.1.self_attn.v_proj": 20},
    },
    "whole norm": {"r": 4, "target_modules": ["o_proj"], "modules_to_save": ["model.norm"]},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_we_load_adapters_of_peft(model, tmp_path, options, capsys) -> None:
    wrapped = library.get_peft_model(qwen(), library.LoraConfig(task_type="CAUSAL_LM", **options))
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    wrapped.eval().save_pretrained(tmp_path / "theirs")
    command = ["from_peft", f"{tmp_path}/theirs", f"{tmp_path}/adapter", f"--model={model}"]
    assert convert.main(command) == 0
    assert f"adapter of {model}" in capsys.readouterr().out
    assert_equal_logits(
        checkpoint_source.open_parameters(tmp_path / "adapter")[1], wrapped, theirs(qwen())
    )


def test_what_peft_wrote_comes_back_unchanged(model, tmp_path) -> None:
    config = library.LoraConfig(r=4, lora_alpha=12, target_modules=EVERY, init_lora_weights=False)
    library.get_peft_model(qwen(), config).save_pretrained(tmp_path / "theirs")
    command = ["from_peft", f"{tmp_path}/theirs", f"{tmp_path}/adapter", f"--model={model}"]
    assert convert.main(command) == 0
    back = ["to_peft", f"{tmp_path}/adapter", f"{tmp_path}/again", "--part=language"]
    assert convert.main(back) == 0
    first, second = (load_file(tmp_path / name / peft.WEIGHTS_FILE) for name in ("theirs", "again"))
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        np.testing.assert_array_equal(second[key], tensor, err_msg=key)


class _Released(torch.nn.Module):
    """Modules with the names and sizes of the released code; PEFT needs no more."""

    def __init__(self, shapes):
        super().__init__()
        for key, shape in shapes.items():
            *parents, last, kind = key.split(".")
            module = self
            for name in parents:
                if not hasattr(module, name):
                    module.add_module(name, torch.nn.Module())
                module = getattr(module, name)
            if kind == "bias":
                continue
            bias = key.removesuffix("weight") + "bias" in shapes
            if len(shape) == 4:
                child = torch.nn.Conv2d(*shape[1::-1], shape[2:], shape[2:], bias=bias)
            elif "embed" in last or "embedding" in last:
                child = torch.nn.Embedding(*shape)
            elif len(shape) == 2:
                child = torch.nn.Linear(shape[1], shape[0], bias=bias)
            else:
                child = torch.nn.LayerNorm(shape, bias=bias)
            module.add_module(last, child)


@pytest.mark.parametrize("name", ["tiny", "tuna_2_tiny"])
def test_peft_loads_ours_onto_the_released_layout(name, tmp_path) -> None:
    config = preset(name)
    params = random_like(tuna.shapes(config))
    export_model(
        tmp_path / "model.safetensors", params, {"kind": "multitask", "model": config.to_dict()}, 0
    )
    trained = ("flow_head.final.norm", "time_embedding.down")
    settings = LoraSettings(
        targets=("*.layers.*", "*.patch", "flow_head.final.linear"),
        rank=2,
        alpha=6.0,
        trained=trained,
    )
    model = tmp_path / "model.safetensors"
    # Such a run has no record, and no VAE: only names and weights matter here.
    folder = adapters.write(tmp_path / "adapter", model, settings)
    assert convert.main(["to_peft", str(folder), f"{tmp_path}/peft"]) == 0

    rows = [row for row in weight_map.rows(config) if not row.torch.startswith("vae.")]
    before = {}
    flat = convert_checkpoint.flatten(params)
    for row in rows:
        for index, key in enumerate(row.names()):
            leaf = flat[row.path] if row.layers is None else flat[row.path][index]
            before[key] = torch.from_numpy(np.ascontiguousarray(row.transform.to_torch(leaf)))
    module_keys = {k: tuple(v.shape) for k, v in before.items() if "." in k}
    released = _Released(module_keys)
    released.load_state_dict({key: before[key] for key in module_keys})
    loaded = library.PeftModel.from_pretrained(released, tmp_path / "peft")
    after = loaded.merge_and_unload().state_dict()

    state = checkpoint_source.open_parameters(folder)[1]
    changed = 0
    for row in rows:
        for index, key in enumerate(row.names()):
            if key not in module_keys:
                continue
            leaf = state.read(row.path, None if row.layers is None else index)
            expected = row.transform.to_torch(leaf)
            np.testing.assert_allclose(after[key], expected, atol=1e-6, err_msg=key)
            changed += not np.array_equal(expected, before[key].numpy())
    kernels = [row for row in rows if ".layers." in row.path and row.path.endswith(".kernel")]
    assert changed >= sum(row.layers for row in kernels) + 4


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ],
)
def test_what_has_no_counterpart_is_named(changes, named, tmp_path) -> None:
    values = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, **changes}
    (tmp_path / peft.CONFIG_FILE).write_text(json.dumps(values))
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / peft.WEIGHTS_FILE)
    with pytest.raises(ValueError, match=named):
        peft.read(tmp_path, TINY)


def test_an_adapter_of_another_model_is_an_error(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json"):
        peft.read(tmp_path, TINY)
    values = {"peft_type": "LORA", "r": 1, "lora_alpha": 1}
    (tmp_path / peft.CONFIG_FILE).write_text(json.dumps(values))
    key = "base_model.model.model.layers.77.self_attn.q_proj.lora_A.weight"
    save_file({key: np.zeros((1, LANGUAGE.width), np.float32)}, tmp_path / peft.WEIGHTS_FILE)
    with pytest.raises(ValueError, match=r"layers\.77"):
        peft.read(tmp_path, TINY)
