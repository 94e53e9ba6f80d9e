"""Models on pixels from training to use: a step, conversion, generation, edits, answers, and what they refuse."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.fixtures import tiny_model
from tests.training.test_train_program import batch
from tuna_jax import Tuna, convert, generate
from tuna_jax.config import preset
from tuna_jax.parallel.mesh import make_mesh
from tuna_jax.trainers import multitask
from tuna_jax.trainers.config import MultitaskExperiment
from tuna_jax.trainers.stream_config import MultitaskData, possible_shapes, stream_settings
from tuna_jax.training.augment import InputNoise, Masking
from tuna_jax.training.config import LoopSettings
from tuna_jax.training.optimizer import OptimizerSettings
from tuna_jax.training.train_program import Program

pytestmark = pytest.mark.usefixtures("any_words")


@pytest.fixture(scope="module", params=["tuna_2_tiny", "tuna_r_tiny"])
def folder(request, tmp_path_factory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def model(folder) -> Tuna:
    return Tuna.load(folder, tokenizer="emoji")


@pytest.mark.slow
def test_generation_edits_and_answers(model, folder) -> None:
    tuna_2 = not model.config.has_encoder
    assert model.samples.solver == ("euler" if tuna_2 else "heun")
    assert (model.samples.guidance, model.samples.edit_guidance) == ((3, 2) if tuna_2 else (4, 5))
    assert model.size == (64, 64)
    image = model.generate_image(["a red apple"], size=(32, 48), steps=2, seed=3)
    assert image.shape == (1, 32, 48, 3) and image.std() > 0
    edited = model.edit_image(list(image), ["make it blue"], size=(32, 48), steps=2)
    assert edited.shape == image.shape and (edited != image).any()

    def with_guidance(scale: float) -> np.ndarray:
        options = {"size": (32, 48), "steps": 2, "guidance": scale}
        return model.edit_image(list(image), ["make it blue"], **options)

    np.testing.assert_array_equal(edited, with_guidance(model.samples.edit_guidance))
    assert (edited != with_guidance(model.samples.guidance)).any()
    answers = {
        model.answer(x, "what is this?", max_new_tokens=6) for x in (image[0], 255 - image[0])
    }
    assert all(isinstance(answer, str) for answer in answers)


def test_a_generated_image_is_the_clamped_final_state(model) -> None:
    """Nothing decodes: rows far outside [-1, 1] are clamped, and no batch is stretched to its range."""
    from tuna_jax.inference import batching

    latents = jnp.asarray([[-3.0, -1.0, 0.0, 1.0, 3.0]]).repeat(154, 1)[:, :768]
    image = batching.decode(model.config, model.vae_params, latents.reshape(1, 1, 1, 1, 768))
    assert set(np.unique(image)) == {0, 127, 255}


def test_clips_and_vaes_are_refused_by_name(model, folder, tmp_path, capsys) -> None:
    with pytest.raises(ValueError, match=r"5 frames.*pixels"):
        model.generate_video(["a cat"], frames=5)
    with pytest.raises(ValueError, match="no VAE"):
        Tuna.load(folder, vae=tmp_path / "vae.safetensors", tokenizer="emoji")
    arguments = [f"--model={folder}", "--tokenizer=emoji", "--task=t2v", "--prompt=a cat"]
    assert generate.main([*arguments, f"--output={tmp_path}/clip.mp4"]) != 0
    assert "pixels" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_draws_and_converts_back_to_the_bit(folder, tmp_path) -> None:
    arguments = [
        f"--model={folder}",
        "--tokenizer=emoji",
        "--prompt=a cat",
        "--size=32",
        "--steps=2",
    ]
    assert generate.main([*arguments, f"--output={tmp_path}"]) == 0
    assert Image.open(tmp_path / "prompt_0.png").size == (32, 32)
    again = tmp_path / "again.safetensors"
    assert convert.main(["to_torch", str(folder), str(again)]) == 0
    from safetensors.numpy import load_file

    first, second = load_file(folder.parent / "theirs.safetensors"), load_file(again)
    assert set(first) == set(second)
    for key, value in first.items():
        assert value.tobytes() == second[key].tobytes(), key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tuna_2_tiny", "tuna_r_tiny"])
def test_a_step_from_pixels(name: str) -> None:
    config = preset(name)
    masking = Masking(low=0.2, high=0.6) if config.mask_token else Masking()
    settings = LoopSettings(
        steps=4,
        input_noise=InputNoise(probability=1.0),
        masking=masking,
        optimizer=OptimizerSettings(warmup=1, ema=0.0, decay="all"),
    )
    program = Program(settings, config, ("t2i",), make_mesh())
    current, given = program.initial(), batch()
    given["is_target"] = np.asarray([[True], [False]])
    before = jax.device_get(current.params)
    for _ in range(2):
        run = program.compile(given, {})
        current, window = run(current, program.place(given), {})
    assert np.isfinite(float(window["loss"]))
    part = "embedding" if config.mask_token else "connector"
    changed = jax.tree.map(
        lambda a, b: float(abs(a - b).max()), before, jax.device_get(current.params)
    )
    assert max(jax.tree.leaves(changed[part])) > 0
    if config.mask_token:
        assert changed["mask_token"] > 0


def test_settings_that_do_not_fit_are_named(tmp_path) -> None:
    stream = {"task": "t2i", "manifest": "x.jsonl", "sizes": ("64x64",), "lengths": (64,)}

    def shapes(**changes) -> None:
        data = MultitaskData(streams={"draw": {**stream, **changes}})
        (settings,) = stream_settings(data).values()
        possible_shapes("draw", settings, preset("tuna_2_tiny").space)

    shapes()
    with pytest.raises(ValueError, match=r"streams\.draw.*17 frames"):
        shapes(task="t2v", frames=17)
    with pytest.raises(ValueError, match=r"streams\.draw\.latents"):
        shapes(manifest="", latents="folder")
    with pytest.raises(ValueError, match=r"mask_token"):
        warm = OptimizerSettings(warmup=1)
        settings = LoopSettings(steps=1, masking=Masking(high=0.3), optimizer=warm)
        Program(settings, preset("tuna_r_tiny"), ("t2i",), make_mesh())
    experiment = MultitaskExperiment(
        steps=1,
        model={"preset": "tuna_2_tiny", "language": {"vocabulary": 640}},
        vae="weights/vae.safetensors",
        data=MultitaskData(vocabulary="emoji"),
    )
    with pytest.raises(ValueError, match=r"config\.vae"):
        multitask.load_components(experiment)
    without = dataclasses.replace(experiment, vae="")
    assert multitask.load_components(without)[1] == {}
