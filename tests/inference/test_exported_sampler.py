"""Exported samplers give the traced sampler's images, run where they fit, and are rejected where they do not."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tuna_jax
from tuna_jax.inference import batching, exported_sampler
from tuna_jax.inference.exported_sampler import SamplerSpec
from tuna_jax.inference.generation import flow_sampler
from tuna_jax.sequence import generation_prompt

pytestmark = pytest.mark.usefixtures("any_words")

DOG, CAT = "a dog on a blue background", "a cat on a pink background"
QUICK = {"steps": 2, "size": (32, 32)}
SPEC = SamplerSpec(prompt=32, height=32, width=32, steps=2, shift=3.0, solver="euler")


@pytest.fixture(scope="module")
def folder(tuna, tmp_path_factory):
    """Programs for one guided row, for two, and for one without guidance."""
    path = tmp_path_factory.mktemp("programs")
    replace = dataclasses.replace
    specs = [SPEC, replace(SPEC, rows=2), replace(SPEC, guided=False)]
    files = exported_sampler.write(path, tuna.config, tuna.params, tuna.vae_params, specs)
    assert all(file.is_file() for file in files) and len(set(files)) == 3
    return path


@pytest.fixture
def exported(tiny_model, folder, monkeypatch):
    """The model with its programs, which cannot trace the sampler."""
    model = tuna_jax.Tuna.load(tiny_model, tokenizer="emoji", programs=folder)

    def sample(*arguments, **options):
        raise AssertionError("the sampler was traced")

    monkeypatch.setattr(flow_sampler, "sample", sample)
    return model


def test_a_program_gives_the_samplers_latents(tuna, folder):
    programs = exported_sampler.read(folder, tuna.config, tuna.params, tuna.vae_params).programs
    special = tuna.tokenizer.special
    positive, negative = (
        batching.prefix_of(
            [generation_prompt(special, tuna.tokenizer.encode(text))], special, None, 32
        )
        for text in (DOG, "")
    )
    noise = jax.random.normal(jax.random.key(0), (1, 1, 2, 2, 8))
    expected = flow_sampler.sample(
        tuna.config, tuna.params, positive, noise, negative=negative, guidance=2.5, steps=2
    )
    prompts = [(prefix.tokens, prefix.lengths) for prefix in (positive, negative)]
    latents, clips = programs[SPEC](tuna.params, tuna.vae_params, *prompts, noise, jnp.float32(2.5))
    # Two compilations of one program round equally only as far as the compiler fuses equally.
    assert np.linalg.norm(latents - expected) <= 1e-5 * np.linalg.norm(expected)
    decoded = batching.decode(tuna.config, tuna.vae_params, expected)
    assert np.abs(np.asarray(clips, int) - np.asarray(decoded, int)).max() <= 1


def test_a_model_with_programs_generates_the_same_without_tracing(tuna, exported, monkeypatch):
    calls = [
        ((DOG,), {"seed": 5, "guidance": 4.0, "negative": CAT}),
        (([DOG, CAT],), {"seed": [1, 2]}),
        ((DOG,), {"guidance": 1.0}),
    ]
    results = [exported.generate_image(*prompts, **options, **QUICK) for prompts, options in calls]
    monkeypatch.undo()
    for (prompts, options), images in zip(calls, results, strict=True):
        expected = tuna.generate_image(*prompts, **options, **QUICK)
        assert np.abs(images.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.generate_image(DOG, steps=2, size=(32, 48)),
        lambda model: model.generate_image(DOG, steps=3, size=(32, 32)),
        lambda model: model.generate_image([DOG] * 3, **QUICK),
        lambda model: model.generate_image(" ".join([DOG] * 9), **QUICK),
        lambda model: model.generate_image(DOG, guidance_interval=(0.1, 0.9), **QUICK),
        lambda model: model.generate_video(DOG, frames=5, **QUICK),
        lambda model: model.edit_image(np.zeros((32, 32, 3), np.uint8), DOG, **QUICK),
    ],
    ids=["size", "steps", "rows", "long", "interval", "clip", "edit"],
)
def test_calls_that_no_program_fits_are_traced(exported, call):
    with pytest.raises(AssertionError, match="the sampler was traced"):
        call(exported)


def test_the_program_for_the_shortest_prompts_that_fit_is_used():
    specs = [dataclasses.replace(SPEC, prompt=prompt) for prompt in (128, 32, 64)]
    programs = exported_sampler.Programs(16, {spec: lambda: None for spec in specs})
    for prompt, expected in ((16, 32), (32, 32), (48, 64), (112, 128)):
        match = programs.find(dataclasses.replace(SPEC, prompt=prompt))
        assert match is not None and match[0].prompt == expected
    assert programs.find(dataclasses.replace(SPEC, prompt=144)) is None


def test_programs_of_earlier_versions_counted_grid_points(tuna, folder, tmp_path):
    """They stored `points`, one more than the steps, and named their files by it."""
    listing = json.loads((folder / exported_sampler.LIST_FILE).read_text())
    (entry, *_) = listing["programs"]
    old_entry = {key: value for key, value in entry.items() if key != "steps"} | {"points": 3}
    old_listing = json.dumps(listing | {"programs": [old_entry]})
    (tmp_path / exported_sampler.LIST_FILE).write_text(old_listing)
    file = tmp_path / "draw_1_of_1x32x32_prompt_32_3_3_euler.program"
    file.write_bytes((folder / SPEC.name).read_bytes())
    parameters = (tuna.config, tuna.params, tuna.vae_params)
    assert list(exported_sampler.read(tmp_path, *parameters).programs) == [SPEC]


def test_programs_that_do_not_fit_are_named(tuna, tiny_model, folder, tmp_path):
    load, list_file = tuna_jax.Tuna.load, tmp_path / exported_sampler.LIST_FILE
    with pytest.raises(FileNotFoundError, match=r"programs\.json"):
        load(tiny_model, tokenizer="emoji", programs=tmp_path)
    with pytest.raises(ValueError, match=SPEC.name):
        load(tiny_model, tokenizer="emoji", programs=folder, dtype="bfloat16")
    listing = json.loads((folder / exported_sampler.LIST_FILE).read_text())
    parameters = (tuna.config, tuna.params, tuna.vae_params)
    list_file.write_text(json.dumps(listing | {"platforms": ["tpu"]}))
    with pytest.raises(ValueError, match="tpu.* cpu"):
        exported_sampler.read(tmp_path, *parameters)
    list_file.write_text(json.dumps(listing | {"model": {}}))
    with pytest.raises(ValueError, match="another model"):
        exported_sampler.read(tmp_path, *parameters)
    with pytest.raises(ValueError, match=r"platforms is \['cpu', 'gpu'\]"):
        exported_sampler.write(tmp_path, *parameters, [SPEC], ("cpu", "gpu"))
