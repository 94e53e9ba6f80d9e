"""The VAE of Wan 2.1 against diffusers: level by level, whole clips, 2x2 patches of latents, and both layouts."""

import dataclasses
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tuna_jax import convert
from tuna_jax.config import from_dict, preset, wan21_vae
from tuna_jax.conversion import (
    checkpoint_source,
    config_check,
    detect_format,
    export_backbone,
    vae_weight_map,
)
from tuna_jax.conversion.readers import Entry, StateDict
from tuna_jax.models import layers, vae
from tuna_jax.models.vae_tiles import Tiling
from tuna_jax.utils.param_tree import flatten, unflatten

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TINY = preset("tiny")
# Three levels, four channels: 4x in space in the convolutions, 8x with the patches.
SMALL = dataclasses.replace(
    wan21_vae(),
    latent_channels=16,
    encoder_width=8,
    decoder_width=8,
    multipliers=(1, 2, 2),
    halve_time=(True, True),
    blocks=1,
    latent_stats="custom",
    latent_mean=(0.5, -1.0, 0.2, 0.0),
    latent_std=(1.5, 0.5, 2.0, 1.0),
)
CONFIG = dataclasses.replace(TINY, vae=SMALL)


def close(ours, theirs):
    """Ours `[b t h w c]`, theirs `[b c t h w]`."""
    ours = np.asarray(ours, np.float64)
    theirs = theirs.permute(0, 2, 3, 4, 1).numpy().astype(np.float64)
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)


def to_torch(clip):
    return torch.from_numpy(np.ascontiguousarray(clip.transpose(0, 4, 1, 2, 3)))


def apart(patches):
    """The latents of 2x2 patches: `[b t h w (2 2 c)]` -> `[b t 2h 2w c]`, one by one."""
    patches = np.asarray(patches)
    batch, time, height, width, channels = patches.shape
    latents = np.zeros((batch, time, 2 * height, 2 * width, channels // 4), patches.dtype)
    for row in range(2):
        for column in range(2):
            start = (2 * row + column) * (channels // 4)
            latents[:, :, row::2, column::2] = patches[..., start : start + channels // 4]
    return latents


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    values = export_backbone.backbone_config(CONFIG, "diffusers")
    assert values.pop("_class_name") == "AutoencoderKLWan"
    assert (values["is_residual"], values["patch_size"], values["z_dim"]) == (False, None, 4)
    network = diffusers.AutoencoderKLWan(**values).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    return network


def run(folder, source, config=CONFIG):
    (folder / "model.json").write_text(json.dumps(config.to_dict()))
    return convert.main(
        ["from_torch", str(source), f"{folder}/ours", "--config", f"{folder}/model.json"]
    )


def converted(folder, source):
    assert run(folder, source) == 0
    config, state = checkpoint_source.open_parameters(folder / "ours")
    assert config == CONFIG
    names = [name for name in state.entries if name.startswith("vae.")]
    return unflatten({name: jnp.asarray(state.read(name)) for name in names})["vae"]


@pytest.fixture(scope="module")
def ours(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan21")
    model.save_pretrained(folder / "vae")
    return folder, converted(folder, folder / "vae")


@pytest.fixture(scope="module")
def clip():
    return np.random.default_rng(0).uniform(-1, 1, (1, 5, 24, 16, 3)).astype(np.float32)


def test_level_by_level(model, ours, clip):
    """One frame, so that diffusers' modules run once each."""
    hooked, seen = [], {}
    encoder, decoder = model.encoder, model.decoder
    parts = {f"down{n}": encoder.down_blocks[n] for n in (1, 3, 4)}
    parts["down_mid"] = encoder.mid_block
    parts |= {f"up{n}": block for n, block in enumerate(decoder.up_blocks)}
    parts["up_mid"] = decoder.mid_block
    for name, part in parts.items():
        hook = part.register_forward_hook(lambda m, i, out, name=name: seen.__setitem__(name, out))
        hooked.append(hook)
    moments = model.encode(to_torch(clip[:, :1])).latent_dist
    model.decode(moments.mean)
    for hook in hooked:
        hook.remove()

    @jax.jit
    def each(params, pixels, latents):
        bound = layers.merge(vae._graphdef(SMALL), params)
        down = [bound.encoder(pixels, None, slice(0, n))[0] for n in (2, 3, 4, 5)]
        x = bound.latent_in(latents)[0]
        return down, [bound.decoder(x, None, slice(0, n))[0] for n in (2, 3, 4, 5)]

    latents = moments.mean.permute(0, 2, 3, 4, 1).numpy()
    down, up = each(ours[1], clip[:, :1], latents)
    for got, name in zip(down, ("down1", "down3", "down4", "down_mid"), strict=True):
        close(got, seen[name])
    for got, name in zip(up, ("up_mid", "up0", "up1", "up2"), strict=True):
        close(got, seen[name])


def test_clips_to_latents_and_back(model, ours, clip):
    """Moments, statistics and patches; and decoding of what the patches hold."""
    encode, decode = (jax.jit(f, static_argnums=0) for f in (vae.encode, vae.decode))
    theirs = model.encode(to_torch(clip)).latent_dist
    mean, log_var = encode(SMALL, ours[1], clip)
    assert mean.shape == (1, *SMALL.latent_shape(5, 24, 16)) == (1, 2, 3, 2, 16)
    shift, scale = (torch.tensor(v)[:, None, None, None] for v in SMALL.statistics)
    close(apart(mean), (theirs.mean - shift) / scale)
    close(apart(log_var), theirs.logvar)
    decoded = jnp.clip(decode(SMALL, ours[1], mean), -1, 1)
    close(decoded, model.decode(theirs.mean).sample)


def test_chunks_and_tiles_are_the_whole(ours):
    """A tile is split in the VAE's own latents: 72 of them here, 36 patches. Their overlap is all that a pixel sees."""
    random = np.random.default_rng(1)
    latents = random.normal(size=(1, 3, 2, 2, 16)).astype(np.float32)
    tall = random.normal(size=(1, 1, 36, 1, 16)).astype(np.float32)
    decode = jax.jit(vae.decode, static_argnums=0, static_argnames=("chunked", "tiles"))
    encode = jax.jit(vae.encode, static_argnums=0, static_argnames=("chunked", "tiles"))

    def relative(a: jax.Array, b: jax.Array) -> float:
        return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))

    pixels = decode(SMALL, ours[1], latents)
    assert relative(decode(SMALL, ours[1], latents, chunked=True), pixels) < 1e-5
    moments = encode(SMALL, ours[1], pixels)[0]
    assert relative(encode(SMALL, ours[1], pixels, chunked=True)[0], moments) < 1e-5
    image = decode(SMALL, ours[1], tall)
    assert image.shape == (1, 1, 36 * 8, 8, 3)
    assert relative(decode(SMALL, ours[1], tall, tiles=Tiling(64, 32)), image) < 1e-5
    moments = encode(SMALL, ours[1], image)[0]
    assert relative(encode(SMALL, ours[1], image, tiles=Tiling(64, 32))[0], moments) < 1e-5


@pytest.mark.parametrize("part", ["vae", "vae_diffusers"])
def test_a_round_trip_keeps_every_bit(model, ours, part, tmp_path):
    arguments = ["to_torch", f"{ours[0]}/ours", f"{tmp_path}/again", "--part", part]
    assert convert.main(arguments) == 0
    if part == "vae_diffusers":
        tensors = load_file(tmp_path / "again" / "diffusion_pytorch_model.safetensors")
        state = {key: value.numpy() for key, value in model.state_dict().items()}
        assert set(tensors) == set(state)
        for key, tensor in state.items():
            np.testing.assert_array_equal(tensors[key], tensor)
        settings = json.loads((tmp_path / "again" / "config.json").read_text())
        assert config_check.disagreements(CONFIG, "diffusers", settings, {}) == []
    else:
        again = converted(tmp_path, tmp_path / "again")
        jax.tree.map(np.testing.assert_array_equal, again, ours[1])


def test_wans_own_names_are_those_that_diffusers_reads():
    """Diffusers' converter of `Wan2.1_VAE.pth` knows the full structure only; names suffice."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    config = wan21_vae()
    theirs, reference = (
        {row.path: row.torch for row in vae_weight_map.vae_rows(config, "", names)}
        for names in (vae_weight_map.WAN, vae_weight_map.DIFFUSERS)
    )
    assert len(theirs) == len(set(theirs.values())) == 194
    read = convert_wan_vae_to_diffusers({key: path for path, key in theirs.items()})
    assert read == {key: path for path, key in reference.items()}


def test_a_file_of_its_own_is_recognised():
    """Headers suffice: nothing of the size is allocated."""
    config = dataclasses.replace(preset("tuna_1p5b"), vae=wan21_vae())
    flat = flatten({"vae": vae.shapes(config.vae)})
    entries = {
        row.torch: Entry(
            row.transform.torch_shape(flat[row.path].shape), np.dtype(np.float32), "file"
        )
        for row in vae_weight_map.vae_rows(config.vae, "")
    }
    summary = detect_format.summarize(StateDict(entries, lambda key, index: np.zeros(0)))
    assert (summary.layout, summary.differences) == ("wan", "")
    assert "wan21" in summary.compared_with


def test_the_default_statistics_are_those_of_diffusers():
    parameters = inspect.signature(diffusers.AutoencoderKLWan.__init__).parameters
    mean, std = wan21_vae().statistics
    assert list(mean) == parameters["latents_mean"].default
    assert list(std) == parameters["latents_std"].default
    assert (wan21_vae().spatial_factor, wan21_vae().temporal_factor) == (16, 4)


def test_the_other_vae_is_refused(ours, tmp_path, capsys):
    assert run(tmp_path, ours[0] / "vae", TINY) == 1
    assert "vae.residual=False" in capsys.readouterr().err
    declared = export_backbone.backbone_config(CONFIG, "diffusers")
    for change, words in (
        ({"is_residual": True}, "vae.residual"),
        ({"patch_size": 2}, "vae.pixel_patch"),
        ({"attn_scales": [1.0]}, "attn_scales"),
        ({"latents_mean": [0.0] * 4}, "latents_mean"),
    ):
        (line,) = config_check.disagreements(CONFIG, "diffusers", declared | change, {})
        assert words in line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latent_patch": 3}, r"vae\.latent_patch"),
        ({"pixel_patch": 4}, r"vae\.pixel_patch"),
        ({"latent_patch": 1}, r"vae\.latent_patch=1, 64 channels"),
        ({"decoder_width": 95, "multipliers": (1, 1, 1, 1)}, r"vae\.decoder_width 95"),
    ],
)
def test_odd_values_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(wan21_vae(), **changes)


def test_what_earlier_versions_stored_is_still_recognised():
    """A config without the new fields, and the identity of a VAE from which fingerprints of latents are computed."""
    old = TINY.to_dict()
    for name in ("residual", "pixel_patch", "latent_patch"):
        del old["vae"][name]
    for name in ("kind", "dinov3"):
        del old["representation"][name]
    assert from_dict(old) == TINY
    assert TINY.vae.identity() == {k: getattr(TINY.vae, k) for k in old["vae"]}
    assert {"residual", "pixel_patch", "latent_patch"} <= set(wan21_vae().identity())
