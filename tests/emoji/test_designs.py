"""Emoji training and evaluation with every design: pixels for those that see them, and one-sided runs."""

import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from tuna_jax.config import preset
from tuna_jax.conversion import image_vae_file
from tuna_jax.emoji import batches, latent_pool, model_bundle, task_streams, trainer
from tuna_jax.emoji.config import EmojiExperiment
from tuna_jax.emoji.evaluation import run
from tuna_jax.emoji.world.edits import EditSource
from tuna_jax.emoji.world.rendering import render
from tuna_jax.emoji.world.scenes import SceneSource
from tuna_jax.models import vae
from tuna_jax.parallel.mesh import make_mesh
from tuna_jax.training.train_program import Program
from tuna_jax.utils.config_parsing import parse

DEMO = Path(__file__).parents[2] / "experiments" / "emoji" / "demo.py"


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    """The demo's experiment with the tiny model, a VAE with random parameters, and few rows."""
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    config = preset("tiny").vae
    params = vae.init(config, jax.random.key(0), image_only=True)
    image_vae_file.export(path, config, params, (np.zeros(8, np.float32), np.ones(8, np.float32)))
    values = runpy.run_path(str(DEMO))["get_config"]().to_dict()
    values |= {"vae": str(path), "steps": 2, "log_every": 1, "sample_every": 0}
    values["data"] |= {"scenes": 16, "generation_rows": 2, "understanding_rows": 1}
    values["optimizer"] |= {"algorithm": "adamw", "warmup": 1}
    values["samples"] |= {"steps": 1, "count": 2}
    return values


@pytest.fixture(autouse=True)
def _cheap_latents(monkeypatch, tmp_path_factory):
    """Latents of a pool are colours, which compiles nothing; inference encodes with the VAE."""

    def encode(self, images):
        colours = images[:, None, ::16, ::16].astype(np.float32) / 255
        mean = np.concatenate([colours, np.zeros((*colours.shape[:-1], 5), np.float32)], axis=-1)
        return mean, np.zeros_like(mean)

    monkeypatch.setattr(model_bundle.ModelBundle, "encode", encode)
    # The pools of these latents must not be those of the VAE.
    monkeypatch.setattr(latent_pool, "cache_directory", lambda _: tmp_path_factory.getbasetemp())


def experiment(values, design, *, edits=None, **rows):
    model = {"preset": "tiny", "design": design, "language": {"vocabulary": 640, "layers": 1}}
    model |= {"flow_head": {"layers": 1}, "representation": {"layers": 1}}
    data = values["data"] | rows
    if edits:
        data |= {"edits": edits, "vocabulary": "emoji_all"}
    return values | {"model": model, "data": data}


def groups(config):
    settings = parse(EmojiExperiment, config)
    bundle = model_bundle.load_bundle(settings)
    return settings, bundle, batches.groups(bundle, settings.data, progress=False)


@pytest.mark.parametrize(
    ("design", "side"),
    [
        ("decoupled", "generation_rows"),
        ("decoupled", "understanding_rows"),
        ("late_fusion", "understanding_rows"),
    ],
)
def test_a_one_sided_batch_fits_its_design(values, design, side):
    """The step is traced, but not compiled."""
    settings, bundle, (group,) = groups(experiment(values, design, **{side: 0}))
    batch, heads = group.first, batches.heads(settings.data, group.first)
    assert ("pixels" in batch) == (design == "decoupled")
    assert 0 in heads and sum(heads) == len(batch["tokens"])
    program = Program(settings, bundle.config, ("t2i", "understand"), make_mesh(settings.mesh))
    state, window = program.eval_shape(program.batch_shapes(batch), None, heads)
    assert state.step.shape == () and window["loss"].shape == ()


def test_pixels_are_those_of_the_latents_scenes(values):
    """Whoever sees pixels gets the same batches as the others, and in addition the renderings of the same scenes."""
    edits = {"count": 16, "rows": 2}
    _, _, plain = groups(experiment(values, "cascade", edits=edits))
    _, bundle, (images, edited) = groups(experiment(values, "decoupled", edits=edits))
    for group, reference in zip((images, edited), plain, strict=True):
        assert set(group.first) - set(reference.first) == {"pixels"}
        for name, array in reference.first.items():
            np.testing.assert_array_equal(group.first[name], array)
    pixels = images.first["pixels"]
    assert (pixels.shape, pixels.dtype) == ((3, 1, 1, 64, 64, 3), np.uint8)
    data = values["data"]
    source = SceneSource("train", data["seed"], 64, weights=data["layouts"])
    known = {render(source[i]).tobytes(): i for i in range(16)}
    scenes = [known[picture.tobytes()] for picture in pixels[:, 0, 0]]
    mean, _ = bundle.encode(np.stack([render(source[i]) for i in scenes[:2]]))
    np.testing.assert_allclose(images.first["latents"][:2, 0], mean, atol=2e-3)
    assert edited.first["pixels"].shape == (2, 2, 1, 64, 64, 3)
    pairs = EditSource("train", data["seed"], 64, length=16)
    rendered = {task_streams.render_edit(pairs[i]).tobytes() for i in range(16)}
    assert {np.ascontiguousarray(row[:, 0]).tobytes() for row in edited.first["pixels"]} <= rendered


@pytest.mark.parametrize(
    ("design", "rows"), [("decoupled", {}), ("semantic_only", {"generation_rows": 0})]
)
def test_a_model_that_sees_pixels_is_trained_and_evaluated(values, tmp_path, design, rows):
    # A contact sheet would be due, but a model that does not generate has none.
    config = experiment(values, design, **rows) | ({"sample_every": 2} if rows else {})
    assert trainer.train(config, parse(EmojiExperiment, config), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    losses = {name for name in lines[-1] if name.endswith("_loss")}
    generates = not rows
    assert losses == ({"flow_loss", "text_loss"} if generates else {"text_loss"})
    assert lines[-1]["skipped"] == 0 and all(np.isfinite(line["loss"]) for line in lines)
    assert not (tmp_path / "samples").exists()
    bundle, params, stored = model_bundle.load_trained(tmp_path)
    functions = run.task_functions(bundle, params, stored)
    assert functions.answer is not None
    if generates:
        assert functions.generate(["a dog", "a cat"], 3).shape == (2, 64, 64, 3)
        return
    answers = functions.answer(np.zeros((2, 64, 64, 3), np.uint8), ["what is this?"] * 2)
    assert len(answers) == 2 and answers[0] == answers[1]
    assert functions.generate is None
    with pytest.raises(ValueError, match="semantic_only"):
        bundle.generate(params, ["a dog"])


@pytest.mark.parametrize(
    ("design", "rows", "key"),
    [
        ("semantic_only", {}, r"config\.data\.generation_rows is 2"),
        (
            "semantic_only",
            {"generation_rows": 0, "edits": {"rows": 1}},
            r"config\.data\.edits\.rows",
        ),
        (
            "semantic_only",
            {"generation_rows": 0, "clips": {"generation_rows": 1}},
            r"config\.data\.clips\.generation_rows",
        ),
        ("decoupled", {"clips": {"understanding_rows": 1}}, r"config\.data\.clips\.understanding"),
    ],
)
def test_tasks_that_a_design_cannot_have_are_named(values, tmp_path, design, rows, key):
    config = experiment(values, design, **rows)
    with pytest.raises(ValueError, match=key):
        trainer.train(config, parse(EmojiExperiment, config), tmp_path)
    assert not list(tmp_path.iterdir())
