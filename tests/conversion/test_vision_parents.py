"""Vision encoders from transformers, DINOv3 and SigLIP, on latents and on pixels: layer by layer, and back."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tuna_jax import convert
from tuna_jax.config import DINOv3Config, PixelConfig, preset, wan21_vae
from tuna_jax.conversion import checkpoint_source, config_check, export_backbone
from tuna_jax.conversion.readers import Entry, StateDict
from tuna_jax.models import layers, pixels
from tuna_jax.models.designs import ENCODERS
from tuna_jax.models.representation import interpolate_positions
from tuna_jax.utils.param_tree import flatten, unflatten

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = preset("tiny")
WIDTH, LAYERS, HEADS, MLP, PATCH = 32, 2, 2, 48, 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# ViT-S to L, and the kind of the larger ones.
PLAIN = DINOv3Config(registers=3, rope_base=50.0, layer_scale=0.3)
GATED = DINOv3Config(registers=2, query_bias=False, value_bias=False, gated=True, activation="silu")
replace = dataclasses.replace


def on_latents(own=PLAIN):
    sizes = replace(
        TINY.representation,
        kind="dinov3",
        width=WIDTH,
        layers=LAYERS,
        heads=HEADS,
        mlp=MLP,
        norm_eps=1e-5,
        dinov3=own,
    )
    return replace(TINY, representation=sizes)


def on_pixels(own=GATED):
    return replace(on_latents(own), vae=None, pixels=PixelConfig(patch=PATCH))


def with_noise(model):
    """Adds noise, since exchanged parameters would not be noticed if both were 0 or 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def dinov3_parent(config, **changes):
    """A DINOv3 with one layer more than the model."""
    values = export_backbone.backbone_config(config, "dinov3") | changes
    values["num_hidden_layers"] += 1
    values |= {"attn_implementation": "eager", "layerscale_value": 0.5}
    return with_noise(transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**values)))


def siglip_parent(config, **changes):
    values = export_backbone.backbone_config(config, "siglip") | changes
    values["num_hidden_layers"] += 1
    values["attn_implementation"] = "eager"
    return with_noise(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**values)))


def run(folder, config, *sources, options=()):
    """Converts sources with the command; returns its status."""
    (folder / "model.json").write_text(json.dumps(config.to_dict()))
    arguments = ["from_torch", *map(str, sources), f"{folder}/ours"]
    return convert.main([*arguments, "--config", f"{folder}/model.json", *options])


def converted(folder, config, *sources, options=()):
    """The representation encoder of the converted model."""
    assert run(folder, config, *sources, options=options) == 0
    stored, state = checkpoint_source.open_parameters(folder / "ours")
    assert stored == config
    names = [name for name in state.entries if name.startswith("representation.")]
    return unflatten({name: jnp.asarray(state.read(name)) for name in names})["representation"]


def features(config, params, latents):
    """Features after each layer, in float32."""

    def encoder(count):
        sizes, channels = replace(config.representation, layers=count), config.space.latent_channels
        make = ENCODERS[sizes.kind]
        return layers.split(nnx.eval_shape(lambda: make(sizes, channels, rngs=nnx.Rngs(0))))[0]

    @jax.jit
    def run(params, latents):
        every = []
        for count in range(1, config.representation.layers + 1):
            part = params | {"layers": jax.tree.map(lambda x, n=count: x[:n], params["layers"])}
            every.append(layers.merge(encoder(count), part)(latents))
        return every

    return run(params, jnp.asarray(latents))


def patchify(images, patch):
    return pixels.patchify(jnp.asarray(images), patch)


def states(model, images, dropped):
    """Hidden states after each layer except the last, without the tokens before the patches."""
    with torch.no_grad():
        out = model(torch.from_numpy(np.ascontiguousarray(images)), output_hidden_states=True)
    return [state[:, dropped:] for state in out.hidden_states[1:-1]]


def close(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)


@pytest.fixture(scope="module")
def random_images():
    """Pixels in [-1, 1] `[2, H, W, 3]`, three patches by five."""
    shape = (2, 3 * PATCH, 5 * PATCH, 3)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def latent_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    parent = dinov3_parent(on_latents())
    parent.save_pretrained(folder / "dinov3")
    return folder, parent, converted(folder, on_latents(), folder / "dinov3")


def test_dinov3_on_latents_layer_by_layer(latent_model):
    """A grid that is not square, and a clip of two frames, which do not see each other."""
    _, parent, params = latent_model
    with torch.no_grad():  # The patch embedding is ours: it is a new parameter.
        patch, embedding = params["patch"], parent.embeddings.patch_embeddings
        embedding.weight.copy_(torch.from_numpy(np.array(patch["kernel"].T[:, :, None, None])))
        embedding.bias.copy_(torch.from_numpy(np.array(patch["bias"])))
    latents = np.random.default_rng(0).normal(size=(1, 2, 3, 5, 8)).astype(np.float32)
    theirs = states(parent, latents[0].transpose(0, 3, 1, 2), 1 + PLAIN.registers)
    ours = features(on_latents(), params, latents)
    assert len(ours) == len(theirs) == LAYERS
    for mine, reference in zip(ours, theirs, strict=True):
        close(mine[0].reshape(reference.shape), reference)


def test_dinov3_goes_back_to_transformers(latent_model):
    folder, parent, _ = latent_model
    arguments = ["to_torch", f"{folder}/ours", f"{folder}/again", "--part", "representation"]
    assert convert.main(arguments) == 0
    again, info = transformers.DINOv3ViTModel.from_pretrained(
        folder / "again", output_loading_info=True
    )
    # TUNA has no norm after the layers, and no mask token.
    assert {"norm.weight", "norm.bias", "embeddings.mask_token"} == set(info["missing_keys"])
    assert not info["unexpected_keys"]
    theirs = parent.state_dict()
    own = {k for k in again.state_dict() if "norm." in k[:5] or "mask_token" in k}
    for key, value in again.state_dict().items():
        if key not in own and "patch_embeddings" not in key:
            assert torch.equal(value, theirs[key]), key


def test_dinov3_on_pixels_takes_the_patch_embedding_of_the_parent(tmp_path, random_images, capsys):
    """The parent's pixels are normalised as ImageNet's, ours are in [-1, 1]; gated MLPs and fewer biases."""
    config = on_pixels()
    parent = dinov3_parent(config)
    parent.save_pretrained(tmp_path / "dinov3")
    params = converted(tmp_path, config, tmp_path / "dinov3")
    assert "embeddings.patch_embeddings.weight, embeddings.patch_embeddings.bias" in (
        capsys.readouterr().out
    )
    normalised = ((random_images + 1) / 2 - np.asarray(MEAN)) / np.asarray(STD)
    images = normalised.astype(np.float32).transpose(0, 3, 1, 2)
    ours = features(config, params, patchify(random_images, PATCH)[:, None])
    for mine, theirs in zip(ours, states(parent, images, 1 + GATED.registers), strict=True):
        close(mine, theirs)
    # Back: the exported one takes pixels in [-1, 1], as its preprocessor_config.json declares.
    arguments = ["to_torch", f"{tmp_path}/ours", f"{tmp_path}/again", "--part", "representation"]
    assert convert.main(arguments) == 0
    preprocessor = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())
    assert preprocessor["image_mean"] == preprocessor["image_std"] == [0.5] * 3
    again = transformers.DINOv3ViTModel.from_pretrained(tmp_path / "again").eval()
    with torch.no_grad():
        out = again(
            torch.from_numpy(random_images.transpose(0, 3, 1, 2).copy()), output_hidden_states=True
        )
    close(ours[-1], out.hidden_states[-1][:, 1 + GATED.registers :])
    (tmp_path / "second").mkdir()
    twice = converted(tmp_path / "second", config, tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, twice, params)


def test_siglip_on_pixels_takes_patch_embedding_and_positions(tmp_path, random_images):
    """The parent has 3x3 positions, the model 4x4: they are interpolated, as `positions` need not ask for."""
    sizes = replace(TINY.representation, width=WIDTH, layers=LAYERS, heads=HEADS, mlp=MLP)
    config = replace(TINY, vae=None, pixels=PixelConfig(patch=PATCH), representation=sizes)
    parent = siglip_parent(config, image_size=3 * PATCH)
    parent.save_pretrained(tmp_path / "siglip")
    params = converted(tmp_path, config, tmp_path / "siglip")
    embeddings = getattr(parent, "vision_model", parent).embeddings
    weight = embeddings.patch_embedding.weight.detach().numpy()
    np.testing.assert_array_equal(
        params["patch"]["kernel"], weight.transpose(2, 3, 1, 0).reshape(-1, WIDTH)
    )
    table = jnp.asarray(embeddings.position_embedding.weight.detach().numpy())
    np.testing.assert_array_equal(params["position"], interpolate_positions(table, 3, 4, 4))
    same = replace(config, representation=replace(sizes, grid=3))
    native = random_images[:, : 3 * PATCH, : 3 * PATCH]
    ours = features(same, params | {"position": table}, patchify(native, PATCH)[:, None])
    for mine, theirs in zip(ours, states(parent, native.transpose(0, 3, 1, 2), 0), strict=True):
        close(mine, theirs)


@pytest.mark.parametrize("kind", ["siglip", "dinov3"])
def test_patches_of_wan21_latents_are_a_convolution_of_latents(kind):
    """Transformers' encoder with 2x2 patches of 16 channels, on latents, has the features of ours on their patches."""
    sizes = replace(on_latents().representation, kind=kind)
    config = replace(on_latents(), vae=wan21_vae(), representation=sizes)
    make = ENCODERS[kind]
    params = layers.split(make(sizes, config.vae.latent_channels, rngs=nnx.Rngs(0)))[1]
    names = {f"representation.{k}": np.asarray(v) for k, v in flatten(params).items()}
    written = {}
    export_backbone.to_backbone(config, in_memory(names), kind, lambda specs: Sink(written))
    model = {"siglip": "SiglipVisionModel", "dinov3": "DINOv3ViTModel"}[kind]
    settings = export_backbone.backbone_config(config, kind)
    assert (settings["patch_size"], settings["num_channels"]) == (2, 16)
    layout = {"siglip": "SiglipVisionConfig", "dinov3": "DINOv3ViTConfig"}[kind]
    theirs = getattr(transformers, model)(getattr(transformers, layout)(**settings)).eval()
    prefix = "vision_model." if not hasattr(theirs, "vision_model") else ""
    nested = {"dinov3": lambda key: f"model.{key}" if key.startswith("layer.") else key}
    rename = nested.get(kind, lambda key: key.removeprefix(prefix))
    state = {rename(key): torch.from_numpy(value) for key, value in written.items()}
    assert not theirs.load_state_dict(state, strict=False).unexpected_keys
    side = 2 * config.representation.grid
    latents = np.random.default_rng(1).normal(size=(2, side, side, 16)).astype(np.float32)
    with torch.no_grad():
        out = theirs(
            torch.from_numpy(latents.transpose(0, 3, 1, 2).copy()), output_hidden_states=True
        )
    dropped = 1 + PLAIN.registers if kind == "dinov3" else 0
    ours = features(config, params, patchify(latents, 2)[:, None])[-1]
    close(ours, out.hidden_states[-1][:, dropped:])


class Sink:
    """Collects what is written."""

    def __init__(self, into):
        self.write = into.__setitem__

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def in_memory(arrays):
    entries = {k: Entry(v.shape, v.dtype, "memory") for k, v in arrays.items()}
    return StateDict(entries, lambda k, i: arrays[k] if i is None else arrays[k][i])


DECLARED = export_backbone.backbone_config(on_latents(), "dinov3")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_theta": 10.0}, "representation.dinov3.rope_base"),
        ({"num_register_tokens": 4}, "representation.dinov3.registers"),
        ({"use_gated_mlp": True}, "representation.dinov3.gated"),
        ({"key_bias": True}, "representation.dinov3.key_bias"),
        ({"layer_norm_eps": 1e-6}, "representation.norm_eps"),
        ({"num_attention_heads": 4}, "representation.heads"),
        ({"hidden_act": "silu"}, "'silu'"),
        ({"model_type": "dinov2_with_registers"}, "dinov2_with_registers"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_declared_settings_that_differ_are_named(changes, words):
    assert config_check.disagreements(on_latents(), "dinov3", DECLARED, {}) == []
    (line,) = config_check.disagreements(on_latents(), "dinov3", DECLARED | changes, {})
    assert words in line


def test_parents_of_another_kind_are_refused(latent_model, tmp_path, capsys):
    parent = latent_model[0] / "dinov3"
    assert run(tmp_path, TINY, parent) == 1
    assert "representation.kind='dinov3'" in capsys.readouterr().err
    assert run(tmp_path, replace(TINY, design="latent_only"), parent) == 1
    assert "'latent_only'" in capsys.readouterr().err
    assert run(tmp_path, replace(on_latents(), vae=None, pixels=PixelConfig()), parent) == 1
    assert "wrong shape: embeddings.patch_embeddings.weight" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_odd_values_of_a_config_are_named():
    sizes = on_latents().representation
    for change, words in (
        ({"kind": "dinov2"}, "representation.kind"),
        ({"heads": 16}, "representation.width 32 is not divisible by 4"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(sizes, **change)
    with pytest.raises(ValueError, match=r"representation\.dinov3\.activation"):
        DINOv3Config(activation="relu")
