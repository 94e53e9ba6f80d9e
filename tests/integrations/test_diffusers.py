"""The pipeline with diffusers' arguments: its images are those of `Tuna`, and diffusers is not imported."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from tests.fixtures.random_images import random_image
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.integrations.diffusers import TunaPipeline

pytestmark = pytest.mark.usefixtures("any_words")
PROMPTS = ["a red apple", "two cats"]


class _Generator:
    """What is used of a generator of PyTorch."""

    def __init__(self, seed: int):
        self._seed = seed

    def initial_seed(self) -> int:
        return self._seed


@pytest.fixture(scope="module")
def pipe(tuna) -> TunaPipeline:
    return TunaPipeline(tuna)


@pytest.fixture(scope="module")
def expected(tuna) -> np.ndarray:
    return tuna.generate_image(
        ["a red apple"] * 2 + ["two cats"] * 2, seed=3, steps=2, guidance=2.0, negative="a dog"
    )


def test_images_are_those_of_tuna(pipe, expected):
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "negative_prompt": "a dog"}
    made = pipe(PROMPTS, num_images_per_prompt=2, seed=3, **options).images
    assert [image.size for image in made] == [expected.shape[2:0:-1]] * 4
    np.testing.assert_array_equal(np.stack(made), expected)
    options["negative_prompt"] = ["a dog", "a dog"]
    size = {"height": expected.shape[1], "width": expected.shape[2]}
    (floats,) = pipe(
        *(PROMPTS,),
        num_images_per_prompt=2,
        generator=_Generator(3),
        output_type="np",
        **{"return_dict": False, **size, **options},
    )
    assert floats.dtype == np.float32
    np.testing.assert_array_equal(np.round(255 * floats), expected)


def test_a_list_of_generators_has_a_seed_per_image(pipe, tuna):
    seeds = [7, 2**40]
    made = pipe(PROMPTS, generator=[_Generator(7), 2**40], num_inference_steps=2).images
    np.testing.assert_array_equal(np.stack(made), tuna.generate_image(PROMPTS, seed=seeds, steps=2))
    alone = pipe(PROMPTS[1], seed=2**40, num_inference_steps=2).images[0]
    np.testing.assert_array_equal(alone, made[1])


def test_without_a_seed_images_differ(pipe):
    first, second = (pipe("a cat", num_inference_steps=1).images[0] for _ in range(2))
    assert np.any(np.asarray(first) != np.asarray(second))


def test_edits(pipe, tuna):
    sources = [random_image(0), random_image(1)]
    wanted = tuna.edit_image(
        [sources[0]] * 2 + [sources[1]] * 2,
        ["make it blue"] * 2 + ["remove it"] * 2,
        seed=5,
        steps=2,
    )
    options = {"num_images_per_prompt": 2, "seed": 5, "num_inference_steps": 2}
    pictures = [Image.fromarray(source) for source in sources]
    made = pipe(["make it blue", "remove it"], image=pictures, **options).images
    np.testing.assert_array_equal(np.stack(made), wanted)
    made = pipe("make it blue", image=pictures[0], **options).images
    wanted = tuna.edit_image(sources[0], ["make it blue"] * 2, seed=5, steps=2)
    np.testing.assert_array_equal(np.stack(made), wanted)


def test_an_edit_of_two_images_with_a_scale_of_its_own(pipe, tuna):
    sources = [random_image(0), random_image(1)]
    options = {"seed": 5, "num_inference_steps": 2, "num_images_per_prompt": 2}
    made = pipe("both", image=[sources], image_guidance_scale=2.0, **options).images
    wanted = tuna.edit_image([sources] * 2, ["both"] * 2, image_guidance=2.0, seed=5, steps=2)
    np.testing.assert_array_equal(np.stack(made), wanted)
    assert (wanted != tuna.edit_image([sources] * 2, ["both"] * 2, seed=5, steps=2)).any()
    with pytest.raises(ValueError, match="image_guidance_scale is -1"):
        pipe("both", image=[sources], image_guidance_scale=-1.0)


def test_latents_are_those_that_are_decoded(pipe, tuna):
    from tuna_jax.inference import batching

    options = {"seed": 3, "num_inference_steps": 2}
    latents = pipe(PROMPTS, output_type="latent", **options).images
    assert latents.dtype == np.float32 and len(latents) == 2
    clips, finite = batching.decode_checked(tuna.config, tuna.vae_params, latents)
    assert finite.all()
    np.testing.assert_array_equal(clips[:, 0], np.stack(pipe(PROMPTS, **options).images))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"height": 64}, "width"),
        ({"height": 60, "width": 64}, "60"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"output_type": "pt"}, "output_type"),
        ({"seed": 1, "generator": 2}, "generator"),
        ({"seed": -1}, "seed"),
        ({"seed": [1, 2, 3]}, "seed"),
        ({"negative_prompt": ["a"] * 3}, "negative_prompt"),
        ({"image": [random_image(0)] * 3}, "image"),
    ],
)
def test_an_error_names_the_argument(pipe, arguments, named):
    with pytest.raises(ValueError, match=named):
        pipe(PROMPTS, **arguments)


def test_a_model_is_loaded_as_by_tuna():
    class BFloat16:
        """Reads as PyTorch's."""

        def __str__(self):
            return "torch.bfloat16"

    pipe = TunaPipeline.from_pretrained("emoji", torch_dtype=BFloat16()).to("cuda")
    expected = Tuna.load("emoji", dtype="bfloat16")
    assert pipe.model.config == expected.config and pipe.model.samples == expected.samples
    dtypes = [
        {str(leaf.dtype) for leaf in jax.tree.leaves(model.params)}
        for model in (pipe.model, expected)
    ]
    assert dtypes[0] == dtypes[1] and "bfloat16" in dtypes[0]


def test_neither_diffusers_nor_torch_is_imported():
    code = "import sys, tuna_jax.integrations.diffusers; sys.exit({'diffusers', 'torch'} & {*sys.modules} != set())"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
