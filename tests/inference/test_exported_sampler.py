"""Exported programs: they draw what the traced sampler does, are called where they fit, and are refused where not."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tuna_jax
from tuna_jax.inference import batching, exported_sampler
from tuna_jax.inference.exported_sampler import Drawing
from tuna_jax.inference.generation import flow_sampler
from tuna_jax.sequence import drawing_prompt

pytestmark = pytest.mark.usefixtures("any_words")

DOG, CAT = "a dog on a blue background", "a cat on a pink background"
QUICK = {"steps": 2, "size": (32, 32)}
DRAWING = Drawing(prompt=32, height=32, width=32, steps=2, shift=3.0, solver="euler")


@pytest.fixture(scope="module")
def folder(tuna, tmp_path_factory):
    """Programs for one guided row, for two, and for one without guidance."""
    made = tmp_path_factory.mktemp("programs")
    replace = dataclasses.replace
    drawings = [DRAWING, replace(DRAWING, rows=2), replace(DRAWING, guided=False)]
    files = exported_sampler.write(made, tuna.config, tuna.params, tuna.vae_params, drawings)
    assert all(file.is_file() for file in files) and len(set(files)) == 3
    return made


@pytest.fixture
def loaded(tiny_model, folder, monkeypatch):
    """The model with its programs, which cannot trace the sampler."""
    model = tuna_jax.Tuna.load(tiny_model, tokenizer="emoji", programs=folder)

    def traced(*arguments, **options):
        raise AssertionError("the sampler was traced")

    monkeypatch.setattr(flow_sampler, "_sample", traced)
    return model


def test_a_reloaded_program_gives_the_same_latent(tuna, folder):
    known = exported_sampler.read(folder, tuna.config, tuna.params, tuna.vae_params).known
    special = tuna.tokenizer.special
    sides = [
        batching.prefix_of(
            [drawing_prompt(special, tuna.tokenizer.encode(text))], special, None, 32
        )
        for text in (DOG, "")
    ]
    noise = jax.random.normal(jax.random.key(0), (1, 1, 2, 2, 8))
    wanted = flow_sampler.sample(
        tuna.config, tuna.params, sides[0], noise, negative=sides[1], guidance=2.5, steps=2
    )
    given = [(one.tokens, one.lengths) for one in sides]
    latents, clips = known[DRAWING](tuna.params, tuna.vae_params, *given, noise, jnp.float32(2.5))
    # Two compilations of one program: they round alike only as far as the compiler fuses alike.
    assert np.linalg.norm(latents - wanted) <= 1e-5 * np.linalg.norm(wanted)
    decoded = batching.decode(tuna.config, tuna.vae_params, wanted)
    assert np.abs(np.asarray(clips, int) - np.asarray(decoded, int)).max() <= 1


def test_a_loaded_model_draws_the_same_and_traces_nothing(tuna, loaded, monkeypatch):
    some = [
        ((DOG,), {"seed": 5, "guidance": 4.0, "negative": CAT}),
        (([DOG, CAT],), {"seed": [1, 2]}),
        ((DOG,), {"guidance": 1.0}),
    ]
    drawn = [loaded.generate_image(*prompts, **options, **QUICK) for prompts, options in some]
    monkeypatch.undo()
    for (prompts, options), picture in zip(some, drawn, strict=True):
        wanted = tuna.generate_image(*prompts, **options, **QUICK)
        assert np.abs(picture.astype(int) - wanted.astype(int)).max() <= 1


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
def test_what_no_program_is_for_is_traced(loaded, call):
    with pytest.raises(AssertionError, match="the sampler was traced"):
        call(loaded)


def test_the_program_for_the_shortest_prompts_that_fit_is_taken():
    longer = [dataclasses.replace(DRAWING, prompt=prompt) for prompt in (128, 32, 64)]
    known = exported_sampler.Programs(16, {drawing: lambda: None for drawing in longer})
    for prompt, taken in ((16, 32), (32, 32), (48, 64), (112, 128)):
        found = known.find(dataclasses.replace(DRAWING, prompt=prompt))
        assert found is not None and found[0].prompt == taken
    assert known.find(dataclasses.replace(DRAWING, prompt=144)) is None


def test_programs_that_do_not_fit_are_named(tuna, tiny_model, folder, tmp_path):
    load = tuna_jax.Tuna.load
    with pytest.raises(FileNotFoundError, match="no programs in .*tuna_jax.export` writes some"):
        load(tiny_model, tokenizer="emoji", programs=tmp_path)
    with pytest.raises(ValueError, match="takes parameters of other shapes or types"):
        load(tiny_model, tokenizer="emoji", programs=folder, dtype="bfloat16")
    listed = json.loads((folder / exported_sampler.LIST).read_text())
    held = (tuna.config, tuna.params, tuna.vae_params)
    (tmp_path / exported_sampler.LIST).write_text(json.dumps(listed | {"platforms": ["tpu"]}))
    with pytest.raises(ValueError, match="are for tpu; this is cpu"):
        exported_sampler.read(tmp_path, *held)
    (tmp_path / exported_sampler.LIST).write_text(json.dumps(listed | {"model": {}}))
    with pytest.raises(ValueError, match="are of another model's config"):
        exported_sampler.read(tmp_path, *held)
    with pytest.raises(
        ValueError, match=r"platforms are \['cpu', 'gpu'\]; choose some of cpu, tpu"
    ):
        exported_sampler.write(tmp_path, *held, [DRAWING], ("cpu", "gpu"))
