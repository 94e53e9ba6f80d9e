"""The emoji recipe around an untrained model: what fits together, and what is refused."""

import dataclasses
import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from tuna_jax.config import preset
from tuna_jax.data.scenes import SceneSource, is_held_out
from tuna_jax.models import tuna, vae
from tuna_jax.recipes import emoji
from tuna_jax.recipes.inference import Tuna
from tuna_jax.training import export, image_vae
from tuna_jax.training.checkpoints import Checkpoints
from tuna_jax.training.settings import parse

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "emoji.py"


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """The demo's experiment with the tiny model and a VAE of random weights."""
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    config = preset("tiny").vae
    params = vae.init(config, jax.random.key(0), image_only=True)
    statistics = np.zeros(config.latent_channels, np.float32), np.ones(8, np.float32)
    image_vae.export(path, config, params, statistics)
    values = runpy.run_path(str(EXPERIMENT))["get_config"]().to_dict()
    values |= {"vae": str(path), "model": {"preset": "tiny", "language": {"vocabulary": 640}}}
    values["samples"] |= {"points": 3, "count": 4}
    return values


@pytest.fixture(scope="module")
def trained(values, tmp_path_factory):
    """(world, params), through a workdir as a run leaves it."""
    workdir = tmp_path_factory.mktemp("run")
    world = emoji.load_world(parse(emoji.EmojiExperiment, values))
    params = tuna.init(world.config, jax.random.key(1))
    export.export_model(workdir / export.MODEL_FILE, params, values, 7)
    loaded, again, stored = emoji.load_trained(workdir)
    assert stored == json.loads(json.dumps(values))
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    return loaded, again


def test_a_run_is_loaded_by_itself(trained, values, tmp_path):
    """Its VAE, tokenizer, size, sampling and template come with it, from its file or from a checkpoint."""
    world, params = trained
    export.export_model(tmp_path / "run" / export.MODEL_FILE, params, values, 7)
    saved = Checkpoints(tmp_path / "killed" / "checkpoints", keep=1)
    saved.save(7, {"params": params}, config=values)
    saved.close()
    prompts, pictures = ["a dog on a blue background"], np.zeros((1, 64, 64, 3), np.uint8)
    for path in ("run", "run/model.safetensors", "killed"):
        loaded = Tuna.load(tmp_path / path)
        assert (loaded.size, loaded.samples, loaded.template) == ((64, 64), world.samples, "plain")
        drawn = loaded.generate_image(prompts, seed=2)
        np.testing.assert_array_equal(drawn, world.draw(params, prompts, seed=2))
        said = loaded.answer(pictures[0], "what is this?", max_new_tokens=5)
        assert said == world.answer(params, pictures, ["what is this?"], longest=5)[0]
    # The VAE of its settings is elsewhere now.
    moved = values | {"vae": "gone.safetensors"}
    export.export_model(tmp_path / "moved" / export.MODEL_FILE, params, moved, 7)
    with pytest.raises(FileNotFoundError, match=r"no VAE at gone\.safetensors"):
        Tuna.load(tmp_path / "moved")
    again = Tuna.load(tmp_path / "moved", vae=values["vae"])
    np.testing.assert_array_equal(again.generate_image(prompts, seed=2), drawn)


def test_workdir_without_a_model_says_what_makes_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no trained model .*tuna_jax\.train"):
        emoji.load_trained(tmp_path)


def test_table_smaller_than_the_vocabulary_is_refused(values):
    small = values | {"model": {"preset": "tiny", "language": {"vocabulary": 100}}}
    with pytest.raises(
        ValueError, match=r"config\.model\.language\.vocabulary is 100.*needs a row"
    ):
        emoji.load_world(parse(emoji.EmojiExperiment, small))


def test_vae_with_other_channels_is_refused(values):
    other = values | {"model": {"preset": "emoji"}}
    with pytest.raises(ValueError, match="8 latent channels and the model wants 16"):
        emoji.load_world(parse(emoji.EmojiExperiment, other))


def test_a_picture_depends_on_its_seed_place_and_prompt_alone(trained):
    world, params = trained
    prompts = ["a dog on a blue background", "a cat on a pink background"]
    both = world.draw(params, prompts, seed=3)
    assert both.shape == (2, 64, 64, 3) and both.dtype == np.uint8
    np.testing.assert_array_equal(both, world.draw(params, prompts, seed=3))
    assert (both != world.draw(params, prompts, seed=4)).any()
    # More pictures beside it, in a batch of another size, change nothing but rounding.
    many = world.draw(params, [*prompts, *prompts], seed=3)
    assert np.abs(many[:2].astype(int) - both).max() <= 1
    assert np.abs(many[2].astype(int) - both[0]).max() > 1, "another place has other noise"


def test_answers_are_texts_of_the_vocabulary(trained):
    world, params = trained
    pictures = np.zeros((3, 64, 64, 3), np.uint8)
    answers = world.answer(params, pictures, ["what is this?"] * 3, longest=4)
    assert len(answers) == 3 and len(set(answers)) == 1
    assert all("<|" not in answer for answer in answers)


def test_many_rows_go_through_in_chunks_in_order(trained):
    world, _ = trained
    grey = np.arange(70, dtype=np.uint8)[:, None, None, None] * np.ones((1, 64, 64, 3), np.uint8)
    whole = world.reconstruct(grey)
    assert whole.shape == grey.shape
    last = world.reconstruct(grey[-1:])
    assert np.abs(whole[-1:].astype(int) - last).max() <= 1


def test_sheet_shows_unseen_combinations(values):
    settings = parse(emoji.EmojiExperiment, values)
    prompts = emoji.sheet_prompts(6, settings.data)
    assert len(prompts) == 6
    for split in ("test_single", "test_pairs"):
        assert all(is_held_out(SceneSource(split, 0, 64)[index]) for index in range(6))


def test_batches_hold_both_tasks_and_are_random_access(values):
    settings = parse(emoji.EmojiExperiment, values)
    data = dataclasses.replace(settings.data, scenes=64, draw_rows=3, understand_rows=2)
    world = emoji.load_world(settings)
    dataset = emoji.batches(world, data, progress=False)
    batch = dataset[5]
    assert batch["task"].tolist() == [0, 0, 0, 1, 1]
    assert batch["latents"].shape == (5, 1, 1, 4, 4, 8)
    # The loop tells the loss how many rows have which target; more than that would be left out.
    assert batch["is_target"][:, 0].tolist() == [True, True, True, False, False]
    assert (batch["labels"] != -100).any(1).tolist() == [False, False, False, True, True]
    for name, array in emoji.batches(world, data, progress=False)[5].items():
        np.testing.assert_array_equal(array, batch[name])
