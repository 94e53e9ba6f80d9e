"""Training in the hard world: its experiment, its batches, its VAE, and pictures in place of latents."""

import dataclasses
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from tuna_jax.conversion import image_vae_file
from tuna_jax.emoji import batches, image_streams, model_bundle, trainer
from tuna_jax.emoji.config import DialogueData, EmojiExperiment
from tuna_jax.emoji.latent_pool import LatentPool
from tuna_jax.emoji.world.hard.rendering import render_hard
from tuna_jax.emoji.world.hard.scenes import HardSceneSource
from tuna_jax.emoji.world.scenes import GROUNDS
from tuna_jax.emoji.world.worlds import hard_world, world
from tuna_jax.utils.config_parsing import parse
from tuna_jax.utils.param_tree import flatten

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "emoji" / "hard.py"


@pytest.fixture(scope="module")
def values():
    return runpy.run_path(str(EXPERIMENT))["get_config"]().to_dict()


class CornerEncoder(model_bundle.ModelBundle):
    """Encodes a patch to its first pixel, which compiles nothing; what is tested is what it is given."""

    def encode(self, images):
        pixels = images[:, None, ::16, ::16] / np.float32(127.5) - 1
        mean = np.concatenate([pixels, np.zeros((*pixels.shape[:-1], 13), np.float32)], axis=-1)
        return mean, np.zeros_like(mean)


@pytest.fixture(scope="module")
def bundle(values):
    """The experiment's bundle, with another encoder."""
    loaded = model_bundle.load_bundle(parse(EmojiExperiment, values))
    return CornerEncoder(**{f.name: getattr(loaded, f.name) for f in dataclasses.fields(loaded)})


def test_the_experiment_loads_with_its_own_vae(bundle, values):
    settings = parse(EmojiExperiment, values)
    loaded = bundle
    assert (loaded.size, loaded.grid.tokens, loaded.tokenizer.size <= 640) == (96, 36, True)
    own, shipped = (image_vae_file.load_image_vae(name)[0] for name in ("emoji_hard_vae", None))
    assert loaded.config.vae.latent_mean == own.latent_mean != shipped.latent_mean
    prompts = trainer.sheet_prompts(10, settings.data)
    assert prompts == trainer.sheet_prompts(10, settings.data) and len(set(prompts)) == 10


def test_batches_have_the_worlds_scenes_and_texts(bundle, values):
    data = dataclasses.replace(parse(EmojiExperiment, values).data, scenes=64)
    (group,) = batches.groups(bundle, data, progress=False)
    batch = group.first
    assert batch["latents"].shape == (24, 1, 1, 6, 6, 16)
    # The first pixel of a picture is its ground.
    corners = (batch["latents"][:, 0, 0, 0, 0, :3] + 1) * 127.5
    palette = np.array(list(GROUNDS.values()))
    assert (np.abs(corners[:, None] - palette).max(-1).min(1) < 6).all()
    assert batch["tokens"].shape == (24, 80)
    texts = [
        bundle.tokenizer.decode(row[row != bundle.tokenizer.special.pad]) for row in batch["tokens"]
    ]
    assert any("background" in text or " a " in text for text in texts)
    # The longest row has room.
    source, tokenizer = HardSceneSource(), bundle.tokenizer
    everything = hard_world(0.0)
    longest = 0
    for index in range(150):
        scene = source[index]
        full = everything.phrasings(scene, np.random.default_rng(0))[0]
        asked = everything.questions(scene)
        longest = max(
            longest,
            len(tokenizer.encode(full)),
            *(len(tokenizer.encode(q.question)) + len(tokenizer.encode(q.answer)) for q in asked),
        )
    assert longest + 4 + 1 + 36 <= data.length
    with pytest.raises(ValueError, match=r"config\.data\.dialogues"):
        talking = dataclasses.replace(data, dialogues=DialogueData(rows=4))
        batches.groups(bundle, talking, progress=False)


def test_a_model_of_few_layouts_is_measured_on_their_splits(values):
    data = parse(EmojiExperiment, values).data
    assert len(data.test_splits) == 6
    weights = {"single": 0.5, "count": 0.5, "pair": 0.0}
    data = dataclasses.replace(data, layouts=weights)
    assert data.test_splits == ("test_single", "test_colours", "test_counts")
    small = dataclasses.replace(data, layouts={}, nouns=4, colours=3)
    assert small.test_splits == data.test_splits
    assert len(set(trainer.sheet_prompts(6, small))) == 6


@pytest.mark.parametrize(
    ("name", "partial", "match"), [("easy", 0.5, "hard"), ("hard", 2.0, "0 and 1")]
)
def test_a_wrong_world_is_an_error(name, partial, match):
    with pytest.raises(ValueError, match=match):
        world(name, partial)


def test_the_share_of_partial_captions(bundle):
    source = HardSceneSource(weights={"single": 1.0})
    zeros = np.zeros((200, 1, 6, 6, 16), np.float16)
    pool = LatentPool(source, zeros, zeros)

    def share(partial):
        stream = image_streams.text_to_image_stream(
            pool, bundle.tokenizer, rows=4, caption_dropout=0.0, world=hard_world(partial)
        )
        samples = [stream.samples[i] for i in range(60)]
        texts = [bundle.tokenizer.decode(s.sequence.tokens) for s in samples]
        # A full caption of one object names its place and the ground.
        return np.mean([not (" in the " in t.lower() and "background" in t) for t in texts])

    assert share(0.0) == 0 and 0.2 < share(0.5) < 0.6 < share(1.0)


def test_a_model_of_pixels_gets_the_pictures(values):
    model = {"preset": "tuna_2_emoji", "language": {"vocabulary": 640}}
    settings = parse(EmojiExperiment, values | {"vae": "", "model": model})
    loaded = model_bundle.load_bundle(settings)
    data = dataclasses.replace(settings.data, scenes=64)
    (group,) = batches.groups(loaded, data, progress=False)
    assert group.first["latents"].shape == (24, 1, 1, 6, 6, 16 * 16 * 3)
    source = HardSceneSource("train", data.seed, 96, difficulty=data.difficulty)
    pictures = np.stack([render_hard(source[i]) for i in range(64)])
    np.testing.assert_allclose(loaded.reconstruct(pictures[:4]), pictures[:4].astype(int), atol=1)
    corners = np.rint((group.first["latents"][:, 0, 0, 0, 0, :3] + 1) * 127.5)
    known = {tuple(picture[0, 0].tolist()) for picture in pictures}
    assert {tuple(int(v) for v in corner) for corner in corners} <= known


def test_a_vae_that_is_stored_as_a_difference(tmp_path):
    config, params = image_vae_file.load_image_vae("emoji_hard_vae")
    _, base = image_vae_file.load_image_vae()
    assert image_vae_file.vae_path("emoji_hard_vae").stat().st_size < 2_000_000
    statistics = np.array(config.latent_mean), np.array(config.latent_std)
    path = image_vae_file.export_adaptation(
        tmp_path / "again.safetensors", config, params, statistics, adapts="emoji_vae", share=0.9
    )
    with safe_open(path, framework="numpy") as file:
        assert file.metadata()["adapts"] == "emoji_vae"
        assert json.loads(file.metadata()["vae"])["latent_channels"] == 16
    loaded, again = image_vae_file.load_image_vae(path)
    assert loaded.latent_mean == config.latent_mean
    old, new, true = flatten(base), flatten(again), flatten(params)
    assert set(new) == set(true)
    for name in true:
        change = np.linalg.norm(true[name] - old[name])
        assert np.linalg.norm(new[name] - true[name]) <= 0.02 * change + 2e-3, name
    with pytest.raises(FileNotFoundError, match="none"):
        image_vae_file.load_image_vae("none")
