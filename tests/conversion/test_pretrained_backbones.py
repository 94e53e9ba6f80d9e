"""Pretrained backbones: PyTorch models -> our parameters -> the same outputs, layer by layer; and back."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tuna_jax import convert
from tuna_jax.config import preset
from tuna_jax.conversion import (
    checkpoint_source,
    convert_checkpoint,
    export_backbone,
    weight_map,
)
from tuna_jax.conversion.gguf import half_split
from tuna_jax.models import tuna, vae
from tuna_jax.models.representation import interpolate_positions
from tuna_jax.utils.param_tree import flatten, unflatten

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = preset("tiny")
LANGUAGE, VISION = TINY.language, TINY.representation


def relative(ours, theirs) -> float:
    ours, theirs = np.asarray(ours, np.float64), theirs.detach().numpy().astype(np.float64)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def qwen(**changes):
    torch.manual_seed(0)
    values = {
        "vocab_size": LANGUAGE.vocabulary,
        "hidden_size": LANGUAGE.width,
        "num_hidden_layers": LANGUAGE.layers,
        "num_attention_heads": LANGUAGE.heads,
        "num_key_value_heads": LANGUAGE.kv_heads,
        "intermediate_size": LANGUAGE.mlp,
        "rope_theta": LANGUAGE.rope_base,
        "rms_norm_eps": LANGUAGE.norm_eps,
        "tie_word_embeddings": True,
        "attn_implementation": "eager",
    } | changes
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**values)).eval()
    return with_noise(model)


def siglip(patch_size=1, channels=None, image_size=VISION.grid, layers=VISION.layers + 1):
    torch.manual_seed(1)
    config = transformers.SiglipVisionConfig(
        hidden_size=VISION.width,
        num_hidden_layers=layers,
        num_attention_heads=VISION.heads,
        intermediate_size=VISION.mlp,
        layer_norm_eps=VISION.norm_eps,
        image_size=image_size,
        patch_size=patch_size,
        num_channels=channels or TINY.vae.latent_channels,
        attn_implementation="eager",
    )
    return with_noise(transformers.SiglipVisionModel(config).eval())


def with_noise(model):
    """Adds noise, since exchanged parameters would not be noticed if both were 0 or 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def run(folder, *sources, config=TINY, options=()):
    """Converts sources with the command; returns the stored config and our parameters."""
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    arguments = ["from_torch", *map(str, sources), f"{folder}/ours", "--config"]
    assert convert.main([*arguments, f"{folder}/config.json", *options]) == 0
    stored, state = checkpoint_source.open_parameters(folder / "ours")
    return stored, unflatten({key: jnp.asarray(state.read(key)) for key in state.entries})


def first_layers(config, params, part, count):
    """The model with the first `count` layers of a part."""
    sizes = dataclasses.replace(getattr(config, part), layers=count)
    layers = jax.tree.map(lambda x: x[:count], params[part]["layers"])
    params = params | {part: params[part] | {"layers": layers}}
    return dataclasses.replace(config, **{part: sizes}), params


def hidden_of(config, params, tokens):
    with jax.default_matmul_precision("highest"):
        spans = jnp.full((len(tokens), 1, 2), -1)
        return tuna.forward(config, params, jnp.asarray(tokens), spans).hidden


def test_language_model_layer_by_layer_and_back(tmp_path):
    model = qwen()
    model.save_pretrained(tmp_path / "qwen")
    config, params = run(tmp_path, tmp_path / "qwen")
    tokens = np.random.default_rng(0).integers(0, LANGUAGE.vocabulary, (2, 12))
    out = model(torch.from_numpy(tokens), output_hidden_states=True)
    for count in range(1, LANGUAGE.layers):
        theirs = model.model.norm(out.hidden_states[count])
        assert (
            relative(hidden_of(*first_layers(config, params, "language", count), tokens), theirs)
            < 1e-5
        )
    hidden = hidden_of(config, params, tokens)
    assert relative(hidden, out.hidden_states[-1]) < 1e-5
    assert relative(tuna.logits(config, params, hidden), out.logits) < 1e-5
    # Back: transformers loads it without missing keys, with the same outputs.
    arguments = ["to_torch", f"{tmp_path}/ours", f"{tmp_path}/again", "--part", "language"]
    assert convert.main(arguments) == 0
    again, info = transformers.Qwen2ForCausalLM.from_pretrained(
        tmp_path / "again", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    state = again.state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert relative(again(torch.from_numpy(tokens)).logits.detach(), out.logits) < 1e-5


@pytest.mark.parametrize("rows", [400, 700])
def test_the_token_embedding_is_truncated_or_extended(tmp_path, rows):
    model = qwen(vocab_size=rows, tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "qwen")
    untied = dataclasses.replace(TINY, language=dataclasses.replace(LANGUAGE, tied=False))
    _, params = run(tmp_path, tmp_path / "qwen", config=untied)
    kept = min(rows, LANGUAGE.vocabulary)
    table_ = np.asarray(params["language"]["embedding"])
    assert table_.shape == (LANGUAGE.vocabulary, LANGUAGE.width)
    np.testing.assert_array_equal(table_[:kept], model.model.embed_tokens.weight.detach()[:kept])
    head = np.asarray(params["language"]["head"]["kernel"])
    np.testing.assert_array_equal(head[:, :kept], model.lm_head.weight.detach()[:kept].T)
    if rows < LANGUAGE.vocabulary:
        assert 0.015 < table_[rows:].std() < 0.025


def test_llama_without_biases(tmp_path):
    """A llama-style model: our biases are zeros, and the outputs are the same."""
    torch.manual_seed(2)
    sizes = transformers.LlamaConfig(
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
    model = with_noise(transformers.LlamaForCausalLM(sizes).eval())
    model.save_pretrained(tmp_path / "llama")
    config, params = run(tmp_path, tmp_path / "llama")
    assert not np.any(params["language"]["layers"]["query"]["bias"])
    tokens = np.random.default_rng(0).integers(0, LANGUAGE.vocabulary, (2, 9))
    theirs = model(torch.from_numpy(tokens)).logits
    assert relative(tuna.logits(config, params, hidden_of(config, params, tokens)), theirs) < 1e-5


def test_vision_encoder_layer_by_layer_and_back(tmp_path):
    model = siglip()
    model.save_pretrained(tmp_path / "siglip")
    config, params = run(tmp_path, tmp_path / "siglip")
    patch = params["representation"]["patch"]
    with torch.no_grad():  # The patch embedding is ours: it is a new parameter.
        embedding = getattr(model, "vision_model", model).embeddings.patch_embedding
        embedding.weight.copy_(torch.from_numpy(np.array(patch["kernel"].T[:, :, None, None])))
        embedding.bias.copy_(torch.from_numpy(np.array(patch["bias"])))
    size = VISION.grid
    latents = np.random.default_rng(0).normal(size=(2, 1, 1, size, size, 8)).astype(np.float32)
    pixels = torch.from_numpy(latents[:, 0, 0].transpose(0, 3, 1, 2).copy())
    states = model(pixels, output_hidden_states=True).hidden_states
    for count in range(1, VISION.layers + 1):
        few, part = first_layers(config, params, "representation", count)
        with jax.default_matmul_precision("highest"):
            ours = tuna.bind(few, part).representation(jnp.asarray(latents[:, 0]))
        assert relative(ours, states[count]) < 1e-5
    arguments = ["to_torch", f"{tmp_path}/ours", f"{tmp_path}/again", "--part", "representation"]
    assert convert.main(arguments) == 0
    again, info = transformers.SiglipVisionModel.from_pretrained(
        tmp_path / "again", output_loading_info=True
    )
    # TUNA has no norm after the layers; hidden_states do not depend on it.
    assert all("post_layernorm" in key for key in info["missing_keys"])
    assert not info["unexpected_keys"]
    last = again(pixels, output_hidden_states=True).hidden_states[-1]
    assert relative(np.asarray(last.detach()), states[VISION.layers]) < 1e-6


@pytest.mark.parametrize("choice", ["fresh", "interpolate"])
def test_positions_of_another_grid(tmp_path, choice, capsys):
    """SigLIP has 6x6 patches of 4 pixels, TUNA a grid of 4x4 latents."""
    model = siglip(patch_size=4, channels=3, image_size=24)
    model.save_pretrained(tmp_path / "siglip")
    config, params = run(tmp_path, tmp_path / "siglip", options=["--positions", choice])
    output = capsys.readouterr().out
    position = np.asarray(params["representation"]["position"])
    vision = getattr(model, "vision_model", model)  # transformers 5 does not nest it.
    theirs = vision.embeddings.position_embedding.weight.detach().numpy()
    fresh = tuna.init(TINY, jax.random.key(0))["representation"]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8)
    close(params["representation"]["patch"]["kernel"], fresh["patch"]["kernel"])
    assert "vision_model.embeddings.patch_embedding.weight: " in output
    assert "vision_model.encoder.layers.2.mlp.fc1.weight: " in output
    if choice == "fresh":
        close(position, fresh["position"])
        assert "  representation.position" in output
    else:
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(theirs).T.reshape(1, -1, 6, 6), size=(4, 4), mode="bicubic"
        )
        assert relative(position, expected.reshape(-1, 16).T) < 1e-6
        np.testing.assert_array_equal(position, interpolate_positions(jnp.asarray(theirs), 6, 4, 4))
        assert "6x6 to 4x4, bicubic" in output


def test_new_parameters_are_those_of_init(tmp_path):
    """With a language model and a vision encoder: connector, time embedding and flow head are those of `tuna.init`."""
    qwen().save_pretrained(tmp_path / "qwen")
    siglip().save_pretrained(tmp_path / "siglip")
    config, params = run(tmp_path, tmp_path / "qwen", tmp_path / "siglip", options=["--seed", "3"])
    fresh = flatten(tuna.init(config, jax.random.key(3)))
    flat = flatten(params)
    assert set(flat) == set(fresh)
    new = [key for key in fresh if key.startswith(("connector", "time_embedding", "flow_head"))]
    for key in [*new, "representation.patch.kernel"]:
        np.testing.assert_allclose(flat[key], fresh[key], rtol=1e-6, atol=1e-8)
    assert not np.any(flat["flow_head.final.linear.kernel"]), "AdaLN-Zero"
    assert np.any(flat["language.embedding"] != fresh["language.embedding"])


def test_backbones_that_do_not_match_are_errors(tmp_path, capsys):
    model = qwen(num_hidden_layers=LANGUAGE.layers + 1, intermediate_size=96)
    model.save_pretrained(tmp_path / "qwen")
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_dict()))
    ending = [f"{tmp_path}/ours", "--config", f"{tmp_path}/config.json"]
    assert convert.main(["from_torch", f"{tmp_path}/qwen", *ending]) == 1
    error = capsys.readouterr().err
    assert "unexpected: model.layers.2.self_attn.q_proj.weight" in error
    assert (
        "wrong shape: model.layers.0.mlp.up_proj.weight is [96, 64], the model requires [128, 64]"
        in error
    )
    assert not (tmp_path / "ours").exists()
    qwen().save_pretrained(tmp_path / "one")
    assert convert.main(["from_torch", f"{tmp_path}/one", f"{tmp_path}/one", *ending]) == 1
    assert f"{tmp_path}/one" in capsys.readouterr().err
    shapes = weight_map.torch_shapes(TINY, convert_checkpoint.parameter_shapes(TINY))
    save_file(
        {k: np.zeros(s, np.float32) for k, s in shapes.items()}, tmp_path / "tuna.safetensors"
    )
    assert (
        convert.main(["from_torch", f"{tmp_path}/tuna.safetensors", f"{tmp_path}/one", *ending])
        == 1
    )
    assert f"{tmp_path}/one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rope_theta": 500.0}, "language.rope_base is 1e+06, the backbone's is 500"),
        ({"rms_norm_eps": 1e-5}, "language.norm_eps is 1e-06, the backbone's is 1e-05"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "(linear)",
        ),
    ],
)
def test_other_declared_numbers_are_errors(tmp_path, capsys, changes, line):
    qwen(**changes).save_pretrained(tmp_path / "qwen")
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_dict()))
    ending = [f"{tmp_path}/ours", "--config", f"{tmp_path}/config.json"]
    assert convert.main(["from_torch", f"{tmp_path}/qwen", *ending]) == 1
    assert line in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_half_split_inverts_the_order_of_llama_cpp():
    rows = np.random.default_rng(0).normal(size=(3 * 8, 5))
    interleaved = rows.reshape(3, 2, 4, 5).swapaxes(1, 2).reshape(rows.shape)
    np.testing.assert_array_equal(half_split(interleaved, 3), rows)


class TestVAE:
    """diffusers' Wan VAE of the 2.2 kind."""

    SIZES = TINY.vae

    @pytest.fixture(scope="class")
    def model(self):
        diffusers = pytest.importorskip("diffusers")
        torch.manual_seed(3)
        values = export_backbone.backbone_config(TINY, "diffusers")
        values.pop("_class_name")
        return with_noise(diffusers.AutoencoderKLWan(**values).eval())

    @pytest.fixture(scope="class")
    def ours(self, model, tmp_path_factory):
        folder = tmp_path_factory.mktemp("vae")
        model.save_pretrained(folder / "vae")
        return folder, *run(folder, folder / "vae")

    def test_same_latents_and_images(self, model, ours):
        _, config, params = ours
        clip = np.random.default_rng(0).uniform(-1, 1, (1, 5, 32, 32, 3)).astype(np.float32)
        theirs = torch.from_numpy(clip.transpose(0, 4, 1, 2, 3).copy())
        with torch.no_grad(), jax.default_matmul_precision("highest"):
            latent = model.encode(theirs).latent_dist
            mean, log_var = jax.jit(lambda p, x: vae.encode(config.vae, p, x))(params["vae"], clip)
            assert relative(mean, latent.mean.permute(0, 2, 3, 4, 1)) < 1e-5
            assert relative(log_var, latent.logvar.permute(0, 2, 3, 4, 1)) < 1e-5
            decoded = jax.jit(lambda p, z: vae.decode(config.vae, p, z))(params["vae"], mean)
            again = model.decode(latent.mean).sample.permute(0, 2, 3, 4, 1)
            assert relative(jnp.clip(decoded, -1, 1), again) < 1e-5

    @pytest.mark.parametrize("part", ["vae", "vae_diffusers"])
    def test_a_round_trip_keeps_every_bit(self, model, ours, part, tmp_path):
        arguments = ["to_torch", f"{ours[0]}/ours", f"{tmp_path}/again", "--part", part]
        assert convert.main(arguments) == 0
        state = {key: value.numpy() for key, value in model.state_dict().items()}
        if part == "vae_diffusers":
            tensors = load_file(tmp_path / "again" / "diffusion_pytorch_model.safetensors")
            assert set(tensors) == set(state)
            for key, tensor in state.items():
                np.testing.assert_array_equal(tensors[key], tensor)
            _, info = type(model).from_pretrained(tmp_path / "again", output_loading_info=True)
            assert not info["missing_keys"] and not info["unexpected_keys"]
        else:  # Wan's names are converted again, to the same parameters.
            _, params = run(tmp_path, tmp_path / "again")
            jax.tree.map(np.testing.assert_array_equal, params["vae"], ours[2]["vae"])
