"""The emoji trainer and its model bundle, with an untrained model."""

import argparse
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
from tuna_jax.emoji.evaluation.suite import Evaluation
from tuna_jax.emoji.world.scenes import SceneSource, is_held_out
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.models import tuna, vae
from tuna_jax.training import weights_file
from tuna_jax.training.checkpoints import Checkpoints
from tuna_jax.utils.config_parsing import parse

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "emoji" / "demo.py"


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """The demo's experiment with the tiny model and a VAE with random parameters."""
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
    """(bundle, params), loaded from the workdir of a run."""
    workdir = tmp_path_factory.mktemp("run")
    bundle = model_bundle.load_bundle(parse(EmojiExperiment, values))
    params = tuna.init(bundle.config, jax.random.key(1))
    weights_file.export_model(workdir / weights_file.MODEL_FILE, params, values, 7)
    loaded, again, stored = model_bundle.load_trained(workdir)
    assert stored == json.loads(json.dumps(values))
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    return loaded, again


def test_a_run_is_loaded_with_its_components(trained, values, tmp_path):
    """VAE, tokenizer, size, sampling and template come from the exported file or from a checkpoint."""
    bundle, params = trained
    weights_file.export_model(tmp_path / "run" / weights_file.MODEL_FILE, params, values, 7)
    saved = Checkpoints(tmp_path / "killed" / "checkpoints", keep=1)
    saved.save(7, {"params": params}, config=values)
    saved.close()
    prompts, pictures = ["a dog on a blue background"], np.zeros((1, 64, 64, 3), np.uint8)
    for path in ("run", "run/model.safetensors", "killed"):
        loaded = Tuna.load(tmp_path / path)
        assert (loaded.size, loaded.samples, loaded.template) == ((64, 64), bundle.samples, "plain")
        generated = loaded.generate_image(prompts, seed=2)
        np.testing.assert_array_equal(generated, bundle.generate(params, prompts, seed=2))
        answer = loaded.answer(pictures[0], "what is this?", max_new_tokens=5)
        assert answer == bundle.answer(params, pictures, ["what is this?"], max_new_tokens=5)[0]
    # The VAE of the config no longer exists.
    moved = values | {"vae": "gone.safetensors"}
    weights_file.export_model(tmp_path / "moved" / weights_file.MODEL_FILE, params, moved, 7)
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        Tuna.load(tmp_path / "moved")
    again = Tuna.load(tmp_path / "moved", vae=values["vae"])
    np.testing.assert_array_equal(again.generate_image(prompts, seed=2), generated)


def test_a_workdir_without_a_model_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tuna_jax\.train"):
        model_bundle.load_trained(tmp_path)


def test_an_embedding_smaller_than_the_vocabulary_is_an_error(values):
    small = values | {"model": {"preset": "tiny", "language": {"vocabulary": 100}}}
    with pytest.raises(ValueError, match=r"config\.model\.language\.vocabulary"):
        model_bundle.load_bundle(parse(EmojiExperiment, small))


def test_a_run_too_short_for_its_schedule_is_an_error_before_encoding(values, tmp_path):
    short = values | {"steps": 20}
    with pytest.raises(ValueError, match=r"config\.optimizer\.warmup"):
        trainer.train(short, parse(EmojiExperiment, short), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_vae_with_other_channels_is_an_error(values):
    other = values | {"model": {"preset": "emoji"}}
    with pytest.raises(ValueError, match=r"config\.model\.vae\.latent_channels"):
        model_bundle.load_bundle(parse(EmojiExperiment, other))


def test_an_image_depends_only_on_its_seed_index_and_prompt(trained):
    bundle, params = trained
    prompts = ["a dog on a blue background", "a cat on a pink background"]
    both = bundle.generate(params, prompts, seed=3)
    assert both.shape == (2, 64, 64, 3) and both.dtype == np.uint8
    np.testing.assert_array_equal(both, bundle.generate(params, prompts, seed=3))
    assert (both != bundle.generate(params, prompts, seed=4)).any()
    # Other images in the batch, and another batch size, change only rounding.
    many = bundle.generate(params, [*prompts, *prompts], seed=3)
    assert np.abs(many[:2].astype(int) - both).max() <= 1
    assert np.abs(many[2].astype(int) - both[0]).max() > 1, "another index has other noise"


def test_answers_are_texts_of_the_vocabulary(trained):
    bundle, params = trained
    pictures = np.zeros((3, 64, 64, 3), np.uint8)
    answers = bundle.answer(params, pictures, ["what is this?"] * 3, max_new_tokens=4)
    assert len(answers) == 3 and len(set(answers)) == 1
    assert all("<|" not in answer for answer in answers)


def test_many_images_are_processed_in_chunks_in_order(trained):
    bundle, _ = trained
    grey = np.arange(70, dtype=np.uint8)[:, None, None, None] * np.ones((1, 64, 64, 3), np.uint8)
    whole = bundle.reconstruct(grey)
    assert whole.shape == grey.shape
    last = bundle.reconstruct(grey[-1:])
    assert np.abs(whole[-1:].astype(int) - last).max() <= 1


def test_the_sheet_has_held_out_combinations(values):
    settings = parse(EmojiExperiment, values)
    prompts = trainer.sheet_prompts(6, settings.data)
    assert len(prompts) == 6
    for split in ("test_single", "test_pairs"):
        assert all(is_held_out(SceneSource(split, 0, 64)[index]) for index in range(6))


def test_batches_hold_both_tasks_and_are_random_access(values):
    settings = parse(EmojiExperiment, values)
    data = dataclasses.replace(settings.data, scenes=64, generation_rows=3, understanding_rows=2)
    bundle = model_bundle.load_bundle(settings)
    dataset = batches.batches(bundle, data, progress=False)
    batch = dataset[5]
    assert batch["stream"].tolist() == [0, 0, 0, 1, 1]
    assert batch["latents"].shape == (5, 1, 1, 4, 4, 8)
    # The heads run on as many rows as `heads` counts, so it must count all targets.
    assert batch["is_target"][:, 0].tolist() == [True, True, True, False, False]
    assert (batch["labels"] != -100).any(1).tolist() == [False, False, False, True, True]
    for name, array in batches.batches(bundle, data, progress=False)[5].items():
        np.testing.assert_array_equal(array, batch[name])
    # The seed of the order changes the rows, and neither the scenes nor their latents.
    assert parse(EmojiExperiment, values).data.stream_seed == values["data"]["seed"]
    other = batches.batches(bundle, dataclasses.replace(data, order_seed=1), progress=False)
    assert (other[5]["tokens"] != batch["tokens"]).any()
    first = {row.tobytes() for index in range(22) for row in dataset[index]["latents"][:3]}
    assert first == {row.tobytes() for index in range(22) for row in other[index]["latents"][:3]}


ALL = EXPERIMENT.with_name("all_tasks.py")


def small(values, experiment):
    """An experiment with the tiny model, the random VAE, few rows and few items."""
    config = runpy.run_path(str(EXPERIMENT.with_name(experiment)))["get_config"]().to_dict()
    config |= {name: values[name] for name in ("vae", "model", "samples")}
    data = config["data"]
    data |= {"scenes": 32, "generation_rows": min(2, data["generation_rows"])}
    data["understanding_rows"] = min(1, data["understanding_rows"])
    data["edits"] |= {"count": 24, "rows": min(2, data["edits"]["rows"])}
    clips = data["clips"]
    clips |= {"count": 24, "generation_rows": min(2, clips["generation_rows"])}
    clips["understanding_rows"] = min(1, clips["understanding_rows"])
    data["dialogues"]["rows"] = min(2, data["dialogues"]["rows"])
    for name in ("combinations", "continuations"):
        if name in data:
            data[name]["rows"] = 2
    if "combinations" in data:
        data["combinations"]["count"] = 24
    return config


def test_all_tasks_form_groups_of_one_shape(values):
    settings = parse(EmojiExperiment, small(values, "all_tasks.py"))
    bundle = model_bundle.load_bundle(settings)
    assert bundle.config.vae.by_frame
    groups = batches.groups(bundle, settings.data, progress=False)
    by_streams = {tuple(group.first["stream"].tolist()): group.first for group in groups}
    shapes = {task: batch["latents"].shape[1:3] for task, batch in by_streams.items()}
    assert shapes == {(0, 0, 1): (1, 1), (5, 5): (1, 1), (2, 2): (2, 1), (3, 3, 4): (1, 4)}
    assert {
        task: tuple(batches.heads(settings.data, batch)) for task, batch in by_streams.items()
    } == {
        (0, 0, 1): (2, 1),
        (5, 5): (0, 2),
        (2, 2): (2, 0),
        (3, 3, 4): (2, 1),
    }
    for batch in by_streams.values():
        # `heads` counts the targets of the batch.
        flow_rows = (batch["is_target"] & (batch["spans"][..., 1] > 0)).any(1).sum()
        text_rows = (batch["labels"] != -100).any(1).sum()
        assert (flow_rows, text_rows) == tuple(batches.heads(settings.data, batch))


def test_more_tasks_add_groups_and_leave_the_others_as_they_are(values):
    """The batches of the old tasks are the same to the bit, and a run without the new ones keeps its losses."""
    both = {name: small(values, name) for name in ("all_tasks.py", "more_tasks.py")}
    for config in both.values():
        config["data"] |= {"scenes": 32, "questions": {}, "layouts": {}}
    settings = {name: parse(EmojiExperiment, config) for name, config in both.items()}
    bundle = model_bundle.load_bundle(settings["more_tasks.py"])
    groups = {
        name: batches.groups(bundle, parsed.data, progress=False)
        for name, parsed in settings.items()
    }
    for old, new in zip(groups["all_tasks.py"], groups["more_tasks.py"], strict=False):
        assert old.first.keys() == new.first.keys()
        for key, array in old.first.items():
            np.testing.assert_array_equal(array, new.first[key])
    continuing, combining = [group.first for group in groups["more_tasks.py"][4:]]
    data = settings["more_tasks.py"].data
    assert continuing["latents"].shape[1:3] == (2, 4) and set(continuing["stream"]) == {7}
    assert combining["latents"].shape[1:3] == (3, 1) and set(combining["stream"]) == {6}
    assert batches.heads(data, continuing) == batches.heads(data, combining) == (2, 0)
    assert trainer.task_names(settings["all_tasks.py"].data)[-1] == "dialogue"
    assert trainer.task_names(data)[6:] == ("combine", "i2v")


@pytest.mark.parametrize(
    ("experiment", "tasks"),
    [("understanding_only.py", {1, 4, 5}), ("generation_only.py", {0, 2, 3})],
)
def test_a_specialist_has_as_many_rows_of_each_shape(values, experiment, tasks):
    joint = runpy.run_path(str(ALL))["get_config"]()
    specialist = runpy.run_path(str(ALL.with_name(experiment)))["get_config"]()
    assert specialist.steps == joint.steps and specialist.model == joint.model
    assert specialist.optimizer == joint.optimizer
    for part, both in ((specialist.data, joint.data), (specialist.data.clips, joint.data.clips)):
        assert (
            part.generation_rows + part.understanding_rows
            == both.generation_rows + both.understanding_rows
        )
        assert 0 in (part.generation_rows, part.understanding_rows)
    settings = parse(EmojiExperiment, small(values, experiment))
    bundle = model_bundle.load_bundle(settings)
    groups = batches.groups(bundle, settings.data, progress=False)
    assert {int(task) for group in groups for task in group.first["stream"]} == tasks
    functions = run.task_functions(bundle, None, small(values, experiment))
    generating = [functions.generate, functions.edit, functions.generate_clips]
    answering = [functions.answer, functions.answer_clips, functions.converse]
    trained, untrained = (generating, answering) if 0 in tasks else (answering, generating)
    assert all(trained) and not any(untrained)


def test_the_full_experiment_fits_its_model():
    """The loss is traced, but not compiled, for every batch shape of all_tasks.py."""
    values = runpy.run_path(str(ALL))["get_config"]().to_dict()
    settings = parse(EmojiExperiment, values)
    bundle = model_bundle.load_bundle(settings)
    data, params = (
        settings.data,
        jax.eval_shape(lambda: tuna.init(bundle.config, jax.random.key(0))),
    )
    shapes = [(data.generation_rows + data.understanding_rows, data.length, 1, 1)]
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
        step = functools.partial(tuna.loss, bundle.config)
        loss, _ = jax.eval_shape(step, params, batch, latents, times)
        assert loss.shape == ()


def test_an_untrained_model_runs_all_tasks(values):
    config = small(values, "more_tasks.py")
    bundle = model_bundle.load_bundle(parse(EmojiExperiment, config))
    params = tuna.init(bundle.config, jax.random.key(1))
    functions = run.task_functions(bundle, params, config)
    pictures = np.zeros((2, 64, 64, 3), np.uint8)
    assert functions.edit(pictures, ["remove the dog", "remove the cat"], 0).shape == (2, 64, 64, 3)
    clips = functions.generate_clips(["a dog grows on a blue background"], 4, 0)
    assert (
        clips.shape == (1, 4, 64, 64, 3)
        and functions.generate is not None
        and functions.answer is not None
    )
    pairs = np.stack([pictures, pictures], axis=1)
    assert functions.combine(pairs, ["two objects"] * 2, 0).shape == (2, 64, 64, 3)
    assert functions.continue_clips(pictures[:1], ["it grows"], 4, 0).shape == (1, 4, 64, 64, 3)
    assert len(functions.answer_clips(clips, ["what happens?"])) == 1
    answers = functions.converse(
        pictures, ["what is this?", "and where is it?"], [[], [("what is this?", "a dog")]]
    )
    assert len(answers) == 2


@pytest.mark.parametrize(("preset_name", "has_vae"), [("tuna_2_emoji", False), ("emoji", True)])
def test_only_a_model_with_a_vae_is_measured_with_its_reconstructions(
    monkeypatch, preset_name, has_vae
):
    values = runpy.run_path(str(EXPERIMENT))["get_config"]().to_dict()
    values["model"] = {"preset": preset_name}
    bundle = model_bundle.load_bundle(parse(EmojiExperiment, values))
    given = {}

    def measured(functions, **options):
        given.update(options)
        return Evaluation({}, {}, [], [], None)

    monkeypatch.setattr(run, "measure", measured)
    options = argparse.Namespace(images=4, questions=4)
    run.measure_run(bundle, {}, values, options)
    assert (given["reconstruct"] is not None) == has_vae and given["generations"] == 4
