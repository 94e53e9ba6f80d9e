"""Images, clips and edits of a tiny random model: what they depend on, and which options are rejected."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures.random_images import differ, random_image
from tuna_jax.inference import batching, images
from tuna_jax.inference.generation import flow_sampler
from tuna_jax.models import vae
from tuna_jax.models.cpu_fast_paths import Unstacked
from tuna_jax.sequence import Grid, editing_prompt, generation_prompt, image_to_video_prompt

pytestmark = pytest.mark.usefixtures("any_words")

QUICK = {"steps": 2, "size": (32, 32)}
DOG, CAT = "a dog on a blue background", "a cat on a pink background"


def test_an_image_is_the_samplers_result(tuna):
    """The whole call by hand: tokens, noise, both branches of guidance, decoding."""
    image = tuna.generate_image([DOG], seed=5, guidance=4.0, negative=CAT, **QUICK)
    special, encode = tuna.tokenizer.special, tuna.tokenizer.encode
    positive, negative = (
        batching.prefix_of([generation_prompt(special, encode(prompt))], special)
        for prompt in (DOG, CAT)
    )
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(5), 0), (1, 2, 2, 8))
    latents = flow_sampler.sample(
        tuna.config, tuna.params, positive, noise[None], negative=negative, guidance=4.0, steps=2
    )
    pixels = jax.jit(vae.decode, static_argnums=0)(tuna.config.vae, tuna.vae_params, latents)
    np.testing.assert_array_equal(image, flow_sampler.to_uint8(pixels)[:, 0])


def test_an_image_depends_on_its_seed_index_prompt_and_negative_prompt(tuna):
    first = tuna.generate_image([DOG, CAT, DOG], seed=3, **QUICK)
    assert first.shape == (3, 32, 32, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, tuna.generate_image([DOG, CAT, DOG], seed=3, **QUICK))
    assert differ(first, tuna.generate_image([DOG, CAT, DOG], seed=4, **QUICK))
    assert differ(first[0], first[2]), "another index has other noise"
    assert differ(first[0], tuna.generate_image(CAT, seed=3, **QUICK)[0])
    assert not differ(first[:1], tuna.generate_image(DOG, seed=3, **QUICK))
    other = tuna.generate_image([DOG, CAT, DOG], seed=3, negative=["", DOG, ""], **QUICK)
    assert not differ(first[[0, 2]], other[[0, 2]])
    assert differ(first[1], other[1])


def test_an_image_depends_on_the_guidance_interval(tuna):
    """The second of two steps begins at time 0.25: guidance in the first step, in the second, in both and in none."""
    options = {"guidance": 5.0, "negative": CAT, **QUICK}
    first, second, both, none = (
        tuna.generate_image(DOG, guidance_interval=interval, **options)
        for interval in ((0.0, 0.2), (0.2, 1.0), (0.0, 1.0), (0.1, 0.2))
    )
    np.testing.assert_array_equal(both, tuna.generate_image(DOG, **options))
    assert not differ(none, tuna.generate_image(DOG, guidance=1.0, **QUICK))
    assert differ(first, second) and differ(first, both) and differ(second, both)
    defaults = dataclasses.replace(tuna.samples, guidance_interval=(0.2, 1.0))
    by_default = dataclasses.replace(tuna, samples=defaults).generate_image(DOG, **options)
    np.testing.assert_array_equal(second, by_default)


def test_the_batch_size_does_not_change_images(tuna):
    prompts = [DOG, CAT, DOG, CAT, DOG]
    whole = tuna.generate_image(prompts, seed=1, **QUICK)
    assert not differ(whole, tuna.generate_image(prompts, seed=1, batch_size=2, **QUICK))


def test_a_seed_per_row_generates_the_image_of_a_call_of_its_own(tuna):
    single = tuna.generate_image(DOG, seed=9, **QUICK)[0]
    batch = tuna.generate_image([CAT, DOG, DOG], seed=[1, 9, (3, 2)], **QUICK)
    assert not differ(batch[1], single)
    assert not differ(batch[2], tuna.generate_image([CAT, CAT, DOG], seed=3, **QUICK)[2])


def test_sizes_are_height_and_width(tuna):
    assert tuna.size == (64, 64)
    assert tuna.generate_image(DOG, steps=1, size=(32, 48)).shape == (1, 32, 48, 3)


def test_a_clip_has_its_frames(tuna):
    clip = tuna.generate_video([DOG], frames=5, **QUICK)
    assert clip.shape == (1, 5, 32, 32, 3)
    assert differ(clip[0, 0], clip[0, 4])
    np.testing.assert_array_equal(clip, tuna.generate_video([DOG], frames=5, **QUICK))
    assert differ(clip, tuna.generate_video([DOG], frames=5, seed=1, **QUICK))


def test_an_edit_depends_on_its_source_and_instruction(tuna):
    sources = [random_image(0, 32, 32), random_image(1, 32, 32)]
    edited = tuna.edit_image(sources, [DOG, DOG], seed=[0, 0], **QUICK)
    assert edited.shape == (2, 32, 32, 3)
    assert differ(edited[0], edited[1]), "the same noise and instruction, another source"
    other = tuna.edit_image(sources[0], CAT, seed=0, **QUICK)
    assert differ(edited[0], other[0])
    assert differ(edited[0], tuna.edit_image(sources[0], DOG, negative=CAT, **QUICK)[0])
    assert differ(edited[0], tuna.generate_image(DOG, **QUICK)[0])


def test_an_edit_is_the_samplers_result(tuna):
    """The source is clean in both branches of guidance."""
    source = random_image(2, 32, 32)
    edited = tuna.edit_image(source, DOG, seed=1, guidance=2.0, **QUICK)
    special, grid = tuna.tokenizer.special, Grid(1, 2, 2)
    pixels = jnp.asarray(source[None, None]) / 127.5 - 1.0
    clean, _ = jax.jit(vae.encode, static_argnums=0)(tuna.config.vae, tuna.vae_params, pixels)
    positive, negative = (
        batching.prefix_of([editing_prompt(special, ids, grid)], special, clean[:, None])
        for ids in (tuna.tokenizer.encode(DOG), [])
    )
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), 0), (1, 2, 2, 8))
    latents = flow_sampler.sample(
        tuna.config, tuna.params, positive, noise[None], negative=negative, guidance=2.0, steps=2
    )
    decoded = jax.jit(vae.decode, static_argnums=0)(tuna.config.vae, tuna.vae_params, latents)
    assert not differ(edited, np.asarray(flow_sampler.to_uint8(decoded)[:, 0]))


def test_layers_are_unstacked_once_for_all_calls(tuna, monkeypatch):
    """With `unroll` a model passes the same unstacked parameters to each call, and its images do not change."""
    all_params, sample = [], flow_sampler.sample

    def recorded(config, params, *arguments, **options):
        all_params.append(params)
        return sample(config, params, *arguments, **options)

    monkeypatch.setattr(flow_sampler, "sample", recorded)
    unrolled = dataclasses.replace(tuna, config=dataclasses.replace(tuna.config, unroll=True))
    first, second = (unrolled.generate_image(DOG, seed=1, **QUICK) for _ in range(2))
    assert all_params[0] is all_params[1]
    kernel = all_params[0]["language"]["layers"]["mlp"]["up"]["kernel"]
    assert isinstance(kernel, Unstacked) and len(kernel.layers) == tuna.config.language.layers
    np.testing.assert_array_equal(first, second)
    assert not differ(first, tuna.generate_image(DOG, seed=1, **QUICK))


def test_sources_are_scaled_and_one_serves_all_instructions(tuna):
    sources = images.load_sources(tuna, random_image(0, 90, 50), 3, (32, 48))
    assert sources.shape == (3, 1, 32, 48, 3)
    np.testing.assert_array_equal(sources[0], sources[2])
    pair = images.load_sources(tuna, [random_image(0), random_image(1)], 2)
    np.testing.assert_array_equal(pair[:, 0], [random_image(0), random_image(1)])


def test_latents_are_the_mean_of_the_posterior(tuna):
    clips = np.stack([random_image(0), random_image(1)])[:, None]
    mean, std = batching.encode(tuna.config, tuna.vae_params, clips)
    np.testing.assert_array_equal(images.encode(tuna, clips), mean)
    assert float(std.min()) > 0


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda t: t.generate_image(DOG, size=(40, 32)), "height 40"),
        (lambda t: t.edit_image(random_image(0), DOG, size=(32, 40)), "width 40"),
        (lambda t: t.generate_video(DOG, frames=4), "4 frames"),
        (lambda t: t.generate_image([]), "prompt"),
        (lambda t: t.generate_image(DOG, seed=[1, 2]), "2 seeds"),
        (lambda t: t.generate_image(DOG, negative=["a", "b"]), "negative"),
        (lambda t: t.generate_image(DOG, negative=CAT, guidance=1.0), "negative .* guidance 1"),
        (lambda t: t.generate_image(DOG, guidance_interval=(0.9, 0.1)), "guidance_interval"),
        (
            lambda t: t.generate_image(DOG, guidance_interval=(0.1, 0.9), guidance=1.0),
            "guidance_interval .* guidance 1",
        ),
        (lambda t: t.generate_image(DOG, steps=0, size=(32, 32)), "steps"),
        (lambda t: t.generate_image(DOG, solver="rk4", size=(32, 32)), "solver 'rk4'"),
        (lambda t: t.edit_image([random_image(0)] * 2, [DOG] * 3), "2 images for 3 instructions"),
        (lambda t: t.edit_image(np.zeros((5, 64, 64, 3), np.uint8), DOG), "clip"),
    ],
)
def test_an_invalid_option_is_named(tuna, call, match):
    with pytest.raises(ValueError, match=match):
        call(tuna)


def test_a_missing_source_file_is_named(tuna, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        tuna.edit_image(tmp_path / "none.png", DOG)


def test_an_edit_of_two_images_is_the_samplers_result(tuna):
    """Both sources in their order; a scale of the images adds the branch of the text alone."""
    sources = [random_image(2, 32, 32), random_image(3, 32, 32)]
    special, grid = tuna.tokenizer.special, Grid(1, 2, 2)
    clean = images.encode(tuna, np.stack(sources)[:, None])[None]
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), 0), (1, 2, 2, 8))[None]
    positive, negative = (
        batching.prefix_of([editing_prompt(special, ids, grid, 2)], special, clean)
        for ids in (tuna.tokenizer.encode(DOG), tuna.tokenizer.encode(CAT))
    )
    textual = batching.prefix_of(
        [generation_prompt(special, tuna.tokenizer.encode(CAT))],
        special,
        clean,
        positive.tokens.shape[1],
    )
    for image_guidance in (1.0, 2.5):
        scales = {"guidance": 2.0, "image_guidance": image_guidance}
        edited = tuna.edit_image(sources, DOG, negative=CAT, seed=1, **scales, **QUICK)
        latents = flow_sampler.sample(
            tuna.config, tuna.params, positive, noise, negative=negative, textual=textual, steps=2,
            **scales,
        )  # fmt: skip
        decoded = batching.decode(tuna.config, tuna.vae_params, latents)[:, 0]
        assert not differ(edited, np.asarray(decoded))
        assert differ(
            edited, tuna.edit_image(sources[::-1], DOG, negative=CAT, seed=1, **scales, **QUICK)
        )
    assert differ(
        edited, tuna.edit_image(sources, DOG, negative=CAT, seed=1, guidance=2.0, **QUICK)
    )
    # In a call of several edits each has its list.
    both = tuna.edit_image(
        [sources, sources[::-1]], [DOG, DOG], negative=CAT, seed=1, **scales, **QUICK
    )
    assert not differ(both[:1], edited) and differ(both[:1], both[1:])


def test_a_clip_continues_its_first_frame(tuna):
    first = random_image(4, 32, 32)
    options = {"frames": 5, "seed": 1, "guidance": 2.0, **QUICK}
    clip = tuna.generate_video(DOG, image=first, **options)
    special, grid = tuna.tokenizer.special, Grid(2, 2, 2)
    clean = images.encode(tuna, first[None, None])[None]
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), 0), (2, 2, 2, 8))[None]
    positive, negative = (
        batching.prefix_of([image_to_video_prompt(special, ids, grid)], special, clean)
        for ids in (tuna.tokenizer.encode(DOG), [])
    )
    latents = flow_sampler.sample(
        tuna.config, tuna.params, positive, noise, negative=negative, guidance=2.0, steps=2
    )
    assert not differ(clip, np.asarray(batching.decode(tuna.config, tuna.vae_params, latents)))
    assert differ(clip, tuna.generate_video(DOG, **options))
    assert differ(clip, tuna.generate_video(DOG, image=random_image(5, 32, 32), **options))
    larger = tuna.generate_video([DOG, DOG], image=random_image(5, 70, 50), **options)
    assert larger.shape == (2, 5, 32, 32, 3)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda t: t.edit_image([[random_image(0)] * 2, random_image(0)], [DOG] * 2),
            "1, 2 images",
        ),
        (lambda t: t.edit_image([], DOG), "at least one"),
        (lambda t: t.generate_video(DOG, image=[random_image(0)] * 2), "2 images for 1 prompts"),
        (lambda t: t.generate_video(DOG, image=random_image(0), frames=1), "frames is 1"),
        (lambda t: t.generate_video(DOG, image=random_image(0), frames=4), "4 frames"),
        (lambda t: t.generate_image(DOG, image_guidance=2.0), "image_guidance is 2"),
        (lambda t: t.edit_image(random_image(0), DOG, image_guidance=-1.0), "image_guidance is -1"),
    ],
)
def test_wrong_counts_and_scales_are_named(tuna, call, match):
    with pytest.raises(ValueError, match=match):
        call(tuna)
