"""The emoji recipe around an untrained model: what fits together, and what is refused."""

import dataclasses
import functools
import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from tuna_jax.config import preset
from tuna_jax.conversion import image_vae_file
from tuna_jax.emoji import batches, model_bundle, trainer
from tuna_jax.emoji.config import EmojiExperiment
from tuna_jax.emoji.evaluation import run
from tuna_jax.emoji.world.scenes import SceneSource, is_held_out
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.models import tuna, vae
from tuna_jax.training import weights_file
from tuna_jax.training.checkpoints import Checkpoints
from tuna_jax.utils.config_parsing import parse

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "emoji" / "demo.py"


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """The demo's experiment with the tiny model and a VAE of random weights."""
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    config = preset("tiny").vae
    params = vae.init(config, jax.random.key(0), image_only=True)
    statistics = np.zeros(config.latent_channels, np.float32), np.ones(8, np.float32)
    image_vae_file.export(path, config, params, statistics)
    values = runpy.run_path(str(EXPERIMENT))["get_config"]().to_dict()
    values |= {"vae": str(path), "model": {"preset": "tiny", "language": {"vocabulary": 640}}}
    values["samples"] |= {"steps": 2, "count": 4}
    return values


@pytest.fixture(scope="module")
def trained(values, tmp_path_factory):
    """(world, params), through a workdir as a run leaves it."""
    workdir = tmp_path_factory.mktemp("run")
    world = model_bundle.load_bundle(parse(EmojiExperiment, values))
    params = tuna.init(world.config, jax.random.key(1))
    weights_file.export_model(workdir / weights_file.MODEL_FILE, params, values, 7)
    loaded, again, stored = model_bundle.load_trained(workdir)
    assert stored == json.loads(json.dumps(values))
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    return loaded, again


def test_a_run_is_loaded_by_itself(trained, values, tmp_path):
    """Its VAE, tokenizer, size, sampling and template come with it, from its file or from a checkpoint."""
    world, params = trained
    weights_file.export_model(tmp_path / "run" / weights_file.MODEL_FILE, params, values, 7)
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
    weights_file.export_model(tmp_path / "moved" / weights_file.MODEL_FILE, params, moved, 7)
    with pytest.raises(FileNotFoundError, match=r"no VAE at gone\.safetensors"):
        Tuna.load(tmp_path / "moved")
    again = Tuna.load(tmp_path / "moved", vae=values["vae"])
    np.testing.assert_array_equal(again.generate_image(prompts, seed=2), drawn)


def test_workdir_without_a_model_says_what_makes_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no trained model .*tuna_jax\.train"):
        model_bundle.load_trained(tmp_path)


def test_table_smaller_than_the_vocabulary_is_refused(values):
    small = values | {"model": {"preset": "tiny", "language": {"vocabulary": 100}}}
    with pytest.raises(
        ValueError, match=r"config\.model\.language\.vocabulary is 100.*needs a row"
    ):
        model_bundle.load_bundle(parse(EmojiExperiment, small))


def test_a_run_too_short_for_its_schedule_is_refused_before_its_data(values, tmp_path):
    short = values | {"steps": 20}
    with pytest.raises(ValueError, match=r"60 warm-up .*config\.optimizer\.warmup.*of 20 steps"):
        trainer.train(short, parse(EmojiExperiment, short), tmp_path)
    assert not list(tmp_path.iterdir())


def test_vae_with_other_channels_is_refused(values):
    other = values | {"model": {"preset": "emoji"}}
    with pytest.raises(ValueError, match="8 latent channels and the model wants 16"):
        model_bundle.load_bundle(parse(EmojiExperiment, other))


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
    settings = parse(EmojiExperiment, values)
    prompts = trainer.sheet_prompts(6, settings.data)
    assert len(prompts) == 6
    for split in ("test_single", "test_pairs"):
        assert all(is_held_out(SceneSource(split, 0, 64)[index]) for index in range(6))


def test_batches_hold_both_tasks_and_are_random_access(values):
    settings = parse(EmojiExperiment, values)
    data = dataclasses.replace(settings.data, scenes=64, draw_rows=3, understand_rows=2)
    world = model_bundle.load_bundle(settings)
    dataset = batches.batches(world, data, progress=False)
    batch = dataset[5]
    assert batch["stream"].tolist() == [0, 0, 0, 1, 1]
    assert batch["latents"].shape == (5, 1, 1, 4, 4, 8)
    # The loop tells the loss how many rows have which target; more than that would be left out.
    assert batch["is_target"][:, 0].tolist() == [True, True, True, False, False]
    assert (batch["labels"] != -100).any(1).tolist() == [False, False, False, True, True]
    for name, array in batches.batches(world, data, progress=False)[5].items():
        np.testing.assert_array_equal(array, batch[name])


ALL = EXPERIMENT.with_name("all_tasks.py")


def small(values, experiment):
    """An experiment with the tiny model, the random VAE, few rows and few scenes."""
    made = runpy.run_path(str(EXPERIMENT.with_name(experiment)))["get_config"]().to_dict()
    made |= {name: values[name] for name in ("vae", "model", "samples")}
    data = made["data"]
    data |= {"scenes": 32, "draw_rows": min(2, data["draw_rows"])}
    data["understand_rows"] = min(1, data["understand_rows"])
    data["edits"] |= {"count": 24, "rows": min(2, data["edits"]["rows"])}
    clips = data["clips"]
    clips |= {"count": 24, "draw_rows": min(2, clips["draw_rows"])}
    clips["understand_rows"] = min(1, clips["understand_rows"])
    data["dialogues"]["rows"] = min(2, data["dialogues"]["rows"])
    return made


def test_all_tasks_come_in_groups_of_one_shape(values):
    settings = parse(EmojiExperiment, small(values, "all_tasks.py"))
    world = model_bundle.load_bundle(settings)
    assert world.config.vae.by_frame
    groups = batches.groups(world, settings.data, progress=False)
    found = {tuple(group.first["stream"].tolist()): group.first for group in groups}
    shapes = {task: batch["latents"].shape[1:3] for task, batch in found.items()}
    assert shapes == {(0, 0, 1): (1, 1), (5, 5): (1, 1), (2, 2): (2, 1), (3, 3, 4): (1, 4)}
    assert {task: tuple(batches.heads(settings.data, batch)) for task, batch in found.items()} == {
        (0, 0, 1): (2, 1),
        (5, 5): (0, 2),
        (2, 2): (2, 0),
        (3, 3, 4): (2, 1),
    }
    for batch in found.values():
        # What the heads are told is what there is.
        drawn = (batch["is_target"] & (batch["spans"][..., 1] > 0)).any(1).sum()
        told = (batch["labels"] != -100).any(1).sum()
        assert (drawn, told) == tuple(batches.heads(settings.data, batch))


@pytest.mark.parametrize(
    ("experiment", "tasks"),
    [("understanding_only.py", {1, 4, 5}), ("generation_only.py", {0, 2, 3})],
)
def test_one_side_alone_has_as_many_rows_of_each_shape(values, experiment, tasks):
    joint = runpy.run_path(str(ALL))["get_config"]()
    alone = runpy.run_path(str(ALL.with_name(experiment)))["get_config"]()
    assert alone.steps == joint.steps and alone.model == joint.model
    assert alone.optimizer == joint.optimizer
    for one, both in ((alone.data, joint.data), (alone.data.clips, joint.data.clips)):
        assert one.draw_rows + one.understand_rows == both.draw_rows + both.understand_rows
        assert 0 in (one.draw_rows, one.understand_rows)
    settings = parse(EmojiExperiment, small(values, experiment))
    world = model_bundle.load_bundle(settings)
    groups = batches.groups(world, settings.data, progress=False)
    assert {int(task) for group in groups for task in group.first["stream"]} == tasks
    draw, answer, able = run.measured(world, None, small(values, experiment))
    sided = [draw, able.edit, able.draw_clips], [answer, able.answer_clips, able.converse]
    done, not_done = sided if 0 in tasks else sided[::-1]
    assert all(done) and not any(not_done)


def test_the_full_experiment_fits_its_model():
    """Every shape of emoji_all goes through the step, traced alone; a row's text fits its length."""
    values = runpy.run_path(str(ALL))["get_config"]().to_dict()
    settings = parse(EmojiExperiment, values)
    world = model_bundle.load_bundle(settings)
    data, params = settings.data, jax.eval_shape(lambda: tuna.init(world.config, jax.random.key(0)))
    shapes = [(data.draw_rows + data.understand_rows, data.length, 1, 1)]
    shapes += [(data.edits.rows, data.edits.length, 2, 1)]
    shapes += [(data.clips.rows, data.clips.length, 1, data.clips.frames)]
    shapes += [(data.dialogues.rows, data.dialogues.length, 1, 1)]
    for rows, length, slots, frames in shapes:
        latents = jax.ShapeDtypeStruct((rows, slots, frames, 4, 4, 16), np.float32)
        integers = {
            "tokens": (rows, length),
            "labels": (rows, length),
            "spans": (rows, slots, 2),
        }
        batch = {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in integers.items()}
        batch |= {"is_target": jax.ShapeDtypeStruct((rows, slots), bool), "latents": latents}
        times = jax.ShapeDtypeStruct((rows, slots), np.float32)
        step = functools.partial(tuna.loss, world.config)
        loss, _ = jax.eval_shape(step, params, batch, latents, times)
        assert loss.shape == ()


def test_an_untrained_model_does_all_of_it(values):
    made = small(values, "all_tasks.py")
    world = model_bundle.load_bundle(parse(EmojiExperiment, made))
    params = tuna.init(world.config, jax.random.key(1))
    draw, answer, able = run.measured(world, params, made)
    pictures = np.zeros((2, 64, 64, 3), np.uint8)
    assert able.edit(pictures, ["remove the dog", "remove the cat"], 0).shape == (2, 64, 64, 3)
    clips = able.draw_clips(["a dog grows on a blue background"], 4, 0)
    assert clips.shape == (1, 4, 64, 64, 3) and draw is not None and answer is not None
    assert len(able.answer_clips(clips, ["what happens?"])) == 1
    said = able.converse(
        pictures, ["what is this?", "and where is it?"], [[], [("what is this?", "a dog")]]
    )
    assert len(said) == 2
