"""`tuna_jax.Tuna` on a tiny random model: the five abilities, what they depend on, and what is refused."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import tuna_jax
from tuna_jax import convert
from tuna_jax.conversion import image_vae_file
from tuna_jax.inference import batching
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.generation import flow_sampler, text_decoder
from tuna_jax.models import vae
from tuna_jax.models.layers import Apart
from tuna_jax.sequence import Grid, build, drawing_prompt, editing_prompt

pytestmark = pytest.mark.usefixtures("any_words")

QUICK = {"points": 3, "size": (32, 32)}
DOG, CAT = "a dog on a blue background", "a cat on a pink background"


def _picture(seed: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _differ(one: np.ndarray, other: np.ndarray) -> bool:
    """By more than rounding."""
    return bool(np.abs(one.astype(int) - other.astype(int)).max() > 1)


def _logits(tuna, conversation: Conversation) -> jax.Array:
    prefix = tuna.prefix([tuna.ask(conversation)], [conversation.shown])
    decoded = text_decoder.generate(
        tuna.config,
        tuna.params,
        prefix,
        jax.random.key(0),
        eos=-1,
        max_new_tokens=1,
        keep_logits=True,
    )
    assert decoded.logits is not None
    return decoded.logits[0, 0]


# ---- drawing -------------------------------------------------------------------------------------


def test_a_picture_is_what_the_sampler_makes(tuna):
    """The whole call by hand: tokens, noise, both sides of guidance, decoding."""
    drawn = tuna.generate_image([DOG], seed=5, guidance=4.0, negative=CAT, **QUICK)
    special, encode = tuna.tokenizer.special, tuna.tokenizer.encode
    sides = [batching.prefix_of([drawing_prompt(special, encode(p))], special) for p in (DOG, CAT)]
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(5), 0), (1, 2, 2, 8))
    latents = flow_sampler.sample(
        tuna.config, tuna.params, sides[0], noise[None], negative=sides[1], guidance=4.0, points=3
    )
    pixels = jax.jit(vae.decode, static_argnums=0)(tuna.config.vae, tuna.vae_params, latents)
    np.testing.assert_array_equal(drawn, flow_sampler.to_uint8(pixels)[:, 0])


def test_a_picture_depends_on_its_seed_place_prompt_and_negative(tuna):
    first = tuna.generate_image([DOG, CAT, DOG], seed=3, **QUICK)
    assert first.shape == (3, 32, 32, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, tuna.generate_image([DOG, CAT, DOG], seed=3, **QUICK))
    assert _differ(first, tuna.generate_image([DOG, CAT, DOG], seed=4, **QUICK))
    assert _differ(first[0], first[2]), "another place has other noise"
    assert _differ(first[0], tuna.generate_image(CAT, seed=3, **QUICK)[0])
    assert not _differ(first[:1], tuna.generate_image(DOG, seed=3, **QUICK))
    against = tuna.generate_image([DOG, CAT, DOG], seed=3, negative=["", DOG, ""], **QUICK)
    assert not _differ(first[[0, 2]], against[[0, 2]])
    assert _differ(first[1], against[1])


def test_a_picture_depends_on_the_guidance_interval(tuna):
    """Of three points the middle one is 0.25: guidance in the first step alone, in the second, in both."""
    how = {"guidance": 5.0, "negative": CAT, **QUICK}
    first, second, both, none = (
        tuna.generate_image(DOG, guidance_interval=interval, **how)
        for interval in ((0.0, 0.2), (0.2, 1.0), (0.0, 1.0), (0.1, 0.2))
    )
    np.testing.assert_array_equal(both, tuna.generate_image(DOG, **how))
    assert not _differ(none, tuna.generate_image(DOG, guidance=1.0, **QUICK))
    assert _differ(first, second) and _differ(first, both) and _differ(second, both)
    usual = dataclasses.replace(tuna.samples, guidance_interval=(0.2, 1.0))
    drawn = dataclasses.replace(tuna, samples=usual).generate_image(DOG, **how)
    np.testing.assert_array_equal(second, drawn)


def test_chunks_change_nothing(tuna):
    prompts = [DOG, CAT, DOG, CAT, DOG]
    whole = tuna.generate_image(prompts, seed=1, **QUICK)
    assert not _differ(whole, tuna.generate_image(prompts, seed=1, batch_size=2, **QUICK))


def test_own_seeds_draw_what_a_call_alone_would(tuna):
    alone = tuna.generate_image(DOG, seed=9, **QUICK)[0]
    listed = tuna.generate_image([CAT, DOG, DOG], seed=[1, 9, (3, 2)], **QUICK)
    assert not _differ(listed[1], alone)
    assert not _differ(listed[2], tuna.generate_image([CAT, CAT, DOG], seed=3, **QUICK)[2])


def test_sizes_are_height_and_width(tuna):
    assert tuna.size == (64, 64)
    assert tuna.generate_image(DOG, points=2, size=(32, 48)).shape == (1, 32, 48, 3)


def test_a_clip_has_its_frames(tuna):
    clip = tuna.generate_video([DOG], frames=5, **QUICK)
    assert clip.shape == (1, 5, 32, 32, 3)
    assert _differ(clip[0, 0], clip[0, 4])
    np.testing.assert_array_equal(clip, tuna.generate_video([DOG], frames=5, **QUICK))
    assert _differ(clip, tuna.generate_video([DOG], frames=5, seed=1, **QUICK))


def test_an_edit_depends_on_its_source_and_instruction(tuna):
    sources = [_picture(0, 32, 32), _picture(1, 32, 32)]
    edited = tuna.edit_image(sources, [DOG, DOG], seed=[0, 0], **QUICK)
    assert edited.shape == (2, 32, 32, 3)
    assert _differ(edited[0], edited[1]), "the same noise and words, another source"
    other = tuna.edit_image(sources[0], CAT, seed=0, **QUICK)
    assert _differ(edited[0], other[0])
    assert _differ(edited[0], tuna.edit_image(sources[0], DOG, negative=CAT, **QUICK)[0])
    assert _differ(edited[0], tuna.generate_image(DOG, **QUICK)[0])


def test_an_edit_is_what_the_sampler_makes(tuna):
    """The source stands clean in both branches."""
    source = _picture(2, 32, 32)
    edited = tuna.edit_image(source, DOG, seed=1, guidance=2.0, **QUICK)
    special, grid = tuna.tokenizer.special, Grid(1, 2, 2)
    pixels = jnp.asarray(source[None, None]) / 127.5 - 1.0
    clean, _ = jax.jit(vae.encode, static_argnums=0)(tuna.config.vae, tuna.vae_params, pixels)
    sides = [
        batching.prefix_of([editing_prompt(special, ids, grid)], special, clean[:, None])
        for ids in (tuna.tokenizer.encode(DOG), [])
    ]
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), 0), (1, 2, 2, 8))
    latents = flow_sampler.sample(
        tuna.config, tuna.params, sides[0], noise[None], negative=sides[1], guidance=2.0, points=3
    )
    decoded = jax.jit(vae.decode, static_argnums=0)(tuna.config.vae, tuna.vae_params, latents)
    assert not _differ(edited, np.asarray(flow_sampler.to_uint8(decoded)[:, 0]))


# ---- answering -----------------------------------------------------------------------------------


def test_what_an_answer_depends_on(tuna):
    picture, other = _picture(0)[None], _picture(1)[None]
    asked = Conversation.of([picture], "what is this?")
    reference = _logits(tuna, asked)
    np.testing.assert_array_equal(reference, _logits(tuna, asked))
    for changed in (
        Conversation.of([other], "what is this?"),
        Conversation.of([picture], "what colour is the background?"),
        Conversation.of([picture], "what is this?", [("what is this?", "a dog")]),
        Conversation.of([picture, other], "what is this?"),
        Conversation.of([np.concatenate([picture] * 5)], "what is this?"),
        Conversation.of([], "what is this?"),
    ):
        assert float(jnp.abs(_logits(tuna, changed) - reference).max()) > 1e-3
    two = _logits(tuna, Conversation.of([picture, other], "what is this?"))
    swapped = _logits(tuna, Conversation.of([other, picture], "what is this?"))
    assert float(jnp.abs(two - swapped).max()) > 1e-3


def test_an_answer_is_what_the_decoder_makes(tuna):
    picture = _picture(0)
    asked = Conversation.of([picture[None]], "what is this?", [("and this?", "a cat")])
    segments = tuna.tokenizer.chat(
        [
            {"role": "user", "content": "<image>\nand this?"},
            {"role": "assistant", "content": "a cat"},
            {"role": "user", "content": "what is this?"},
        ],
        grids=[Grid(1, 4, 4)],
        answer=True,
    )
    sequence = build(segments, tuna.tokenizer.special)
    assert tuna.ask(asked).tokens.tolist() == sequence.tokens.tolist()
    decoded = text_decoder.generate(
        tuna.config,
        tuna.params,
        tuna.prefix([sequence], [[picture[None]]]),
        jax.random.key(0),
        eos=tuna.tokenizer.special.eos,
        max_new_tokens=6,
    )
    ids = [i for i in decoded.tokens[0].tolist() if i < tuna.tokenizer.size]
    said = tuna.answer(picture, "what is this?", history=[("and this?", "a cat")], max_new_tokens=6)
    assert said == tuna.tokenizer.decode(ids)
    messages = [{"role": "user", "content": "<image>\nand this?"}, *asked.messages[1:]]
    assert tuna.chat(messages, picture, max_new_tokens=6) == said


def test_replies_keep_their_order_whatever_they_show(tuna):
    picture = _picture(0)[None]
    asked = [
        Conversation.of([], "hello"),
        Conversation.of([picture], "what is this?"),
        Conversation.of([picture, picture], "what differs?"),
        Conversation.of([], "what is this?"),
        Conversation.of([np.concatenate([picture] * 5)], "what happens?"),
    ]
    together = tuna.reply(asked, max_new_tokens=4)
    assert together == [tuna.reply([one], max_new_tokens=4)[0] for one in asked]


def test_sampled_answers_depend_on_their_seed_and_place_alone(tuna):
    asked = [Conversation.of([], "hello")] * 3
    options = {"max_new_tokens": 8, "temperature": 1.0}
    three = tuna.reply(asked, seed=2, **options)
    assert len(set(three)) == 3
    assert three == tuna.reply(asked, seed=2, **options)
    assert three[1:] == tuna.reply(asked[1:], seed=[(2, 1), (2, 2)], **options)
    assert three != tuna.reply(asked, seed=3, **options)
    assert len(set(tuna.reply(asked, seed=2, max_new_tokens=8, temperature=1.0, top_k=1))) == 1


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.0, "top_p": 0.9, "seed": 4}], ids=["greedy", "sampled"]
)
def test_a_streamed_answer_is_the_answer_in_parts(tuna, options):
    picture, few = _picture(0), {"max_new_tokens": 20, **options}
    parts = list(tuna.stream_answer(picture, "what is this?", **few))
    said = tuna.answer(picture, "what is this?", **few)
    assert len(parts) > 1 and "".join(parts) == said
    messages = [{"role": "user", "content": "what is this?"}]
    assert "".join(tuna.stream_chat(messages, **few)) == tuna.chat(messages, **few)


def test_what_is_wrong_is_said_before_the_first_part(tuna):
    with pytest.raises(ValueError, match="temperature is -1"):
        tuna.stream_answer(None, "hello", temperature=-1.0)
    with pytest.raises(ValueError, match="unknown template 'odd'"):
        tuna.stream_answer(None, "hello", template="odd")


def test_the_plain_template_has_one_picture_and_one_question(tuna):
    trained = dataclasses.replace(tuna, template="plain")
    picture, special = _picture(0)[None], tuna.tokenizer.special
    plain = trained.ask(Conversation.of([picture], "what is this?")).tokens.tolist()
    ids = tuna.tokenizer.encode("what is this?")
    slot = [special.image_pad] * 17
    assert plain == [special.bos, special.boi, *slot, special.eoi, *ids]
    two = Conversation.of([picture], "why?", [("what is this?", "a dog")])
    assert trained.ask(two).tokens.tolist() == tuna.ask(two).tokens.tolist()
    with pytest.raises(ValueError, match="plain template has one picture"):
        trained.ask(two, "plain")


def test_files_and_pillow_pictures_are_shown_as_arrays_are(tuna, tmp_path):
    picture = _picture(3)
    Image.fromarray(picture).save(tmp_path / "a.png")
    for shown in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(picture)):
        np.testing.assert_array_equal(tuna.see([shown])[0], picture[None])
    assert tuna.see([_picture(0, 90, 50)])[0].shape == (1, 64, 64, 3)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: t.generate_image(DOG, size=(40, 32)), "height 40 is not divisible by 16"),
        (lambda t: t.edit_image(_picture(0), DOG, size=(32, 40)), "width 40 is not divisible"),
        (lambda t: t.generate_video(DOG, frames=4), r"4 frames is not 1 \+ 4k"),
        (lambda t: t.generate_image([]), "no prompt is given"),
        (lambda t: t.generate_image(DOG, seed=[1, 2]), "2 seeds for 1 rows"),
        (lambda t: t.generate_image(DOG, negative=["a", "b"]), "2 negative prompts for 1 prompts"),
        (lambda t: t.generate_image(DOG, negative=CAT, guidance=1.0), "no effect at guidance 1"),
        (lambda t: t.generate_image(DOG, guidance_interval=(0.9, 0.1)), "must be two times"),
        (
            lambda t: t.generate_image(DOG, guidance_interval=(0.1, 0.9), guidance=1.0),
            "interval has no effect at guidance 1",
        ),
        (lambda t: t.generate_image(DOG, points=1, size=(32, 32)), "at least 2 points"),
        (lambda t: t.edit_image([_picture(0)] * 2, [DOG] * 3), "2 pictures and 3 instructions"),
        (
            lambda t: t.edit_image(np.zeros((5, 64, 64, 3), np.uint8), DOG),
            "a clip cannot be edited",
        ),
        (lambda t: t.answer(np.zeros((64, 64)), "?"), "neither a picture"),
        (lambda t: t.answer(np.zeros((4, 64, 64, 3), np.uint8), "?"), "4 frames is not"),
        (lambda t: t.answer([_picture(0), np.zeros((5, 64, 64, 3), np.uint8)], "?"), "together"),
        (lambda t: t.answer(_picture(0), "<image> ?"), "2 <image>, and 1 pictures"),
        (lambda t: t.answer(None, "?", template="odd"), "unknown template 'odd'"),
        (lambda t: t.answer(None, "?", top_p=1.5), "top_p is 1.5"),
        (lambda t: t.chat([{"role": "assistant", "content": "a"}]), "must be the user's"),
        (lambda t: t.chat([{"role": "user"}]), "wants 'role' and 'content'"),
    ],
)
def test_what_does_not_fit_is_named(tuna, call, words):
    with pytest.raises(ValueError, match=words):
        call(tuna)


# ---- loading -------------------------------------------------------------------------------------


def _same(one, other) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_orbax_and_safetensors_are_one_model(tuna, tiny_model, tmp_path):
    theirs, sizes = tiny_model.parent / "theirs.safetensors", tiny_model.parent / "config.json"
    arguments = ["from_torch", str(theirs), f"{tmp_path}/o", "--config", str(sizes)]
    assert convert.main([*arguments, "--format", "orbax"]) == 0
    again = tuna_jax.Tuna.load(tmp_path / "o", tokenizer="emoji")
    _same(tuna.params, again.params)
    _same(tuna.vae_params, again.vae_params)
    assert again.config == tuna.config


def test_layers_are_cut_once_for_all_calls(tuna, monkeypatch):
    """With `unroll` a model hands each call the same parameters, cut, and draws what it drew."""
    given, sample = [], flow_sampler.sample

    def watched(config, params, *more, **how):
        given.append(params)
        return sample(config, params, *more, **how)

    monkeypatch.setattr(flow_sampler, "sample", watched)
    out = dataclasses.replace(tuna, config=dataclasses.replace(tuna.config, unroll=True))
    drawn = [out.generate_image(DOG, seed=1, **QUICK) for _ in range(2)]
    assert given[0] is given[1]
    kernel = given[0]["language"]["layers"]["mlp"]["up"]["kernel"]
    assert isinstance(kernel, Apart) and len(kernel.layers) == tuna.config.language.layers
    np.testing.assert_array_equal(*drawn)
    expected = tuna.generate_image(DOG, seed=1, **QUICK)
    assert not _differ(drawn[0], expected)


def test_a_vae_may_lie_apart(tuna, tiny_model, tmp_path):
    theirs = load_file(tiny_model.parent / "theirs.safetensors")
    rest = {key: x for key, x in theirs.items() if not key.startswith("vae.")}
    wan = {key.removeprefix("vae.model."): x for key, x in theirs.items() if key not in rest}
    save_file(rest, tmp_path / "rest.safetensors")
    save_file(wan, tmp_path / "wan.safetensors")
    sizes = str(tiny_model.parent / "config.json")
    source, model = f"{tmp_path}/rest.safetensors", tmp_path / "model"
    assert convert.main(["from_torch", source, str(model), "--config", sizes]) == 0
    with pytest.raises(ValueError, match=r"has no VAE in it; name one: --vae=FILE"):
        tuna_jax.Tuna.load(model, tokenizer="emoji")
    for path in (tmp_path / "wan.safetensors", tiny_model):
        apart = tuna_jax.Tuna.load(model, vae=path, tokenizer="emoji")
        _same(tuna.vae_params, apart.vae_params)
    with pytest.raises(ValueError, match="holds no VAE"):
        tuna_jax.Tuna.load(model, vae=model, tokenizer="emoji")
    with pytest.raises(FileNotFoundError, match="no VAE at"):
        tuna_jax.Tuna.load(model, vae=tmp_path / "none", tokenizer="emoji")


def test_a_vae_of_pictures_alone_makes_clips_too(tuna, tiny_model, tmp_path):
    """As `experiments/emoji/vae.py` writes one: its missing time taps count as zeros."""
    config = tuna.config.vae
    params = vae.init(config, jax.random.key(3), image_only=True)
    path = tmp_path / "vae.safetensors"
    image_vae_file.export(path, config, params, (np.zeros(8, np.float32), np.ones(8, np.float32)))
    loaded = tuna_jax.Tuna.load(tiny_model, vae=path, tokenizer="emoji")
    clip = loaded.generate_video(DOG, frames=5, **QUICK)
    assert clip.shape == (1, 5, 32, 32, 3)
    with pytest.raises(ValueError, match="16 latent channels and the model wants 8"):
        tuna_jax.Tuna.load(tiny_model, vae=image_vae_file.shipped_image_vae(), tokenizer="emoji")


def test_parameters_can_be_cast(tiny_model):
    half = tuna_jax.Tuna.load(tiny_model, tokenizer="emoji", dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
    assert half.generate_image(DOG, **QUICK).shape == (1, 32, 32, 3)
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        tuna_jax.Tuna.load(tiny_model, tokenizer="emoji", dtype="int8")


def test_what_is_no_model_is_named(tiny_model, tmp_path):
    with pytest.raises(FileNotFoundError, match="no trained model at .*none"):
        tuna_jax.Tuna.load(tmp_path / "none")
    with pytest.raises(ValueError, match="has 640 rows, and Qwen2.5's full tokenizer 151669 ids"):
        tuna_jax.Tuna.load(tiny_model)
    with pytest.raises(ValueError, match="carries no config"):
        tuna_jax.Tuna.load(tiny_model.parent / "theirs.safetensors")
    file = next(tiny_model.glob("*.safetensors"))
    tensors = load_file(file)
    from safetensors import safe_open

    with safe_open(file, "numpy") as opened:
        remarks = opened.metadata()
    tensors.pop("language.norm.scale")
    save_file(tensors, tmp_path / "part.safetensors", remarks)
    with pytest.raises(ValueError, match=r"part\.safetensors is not whole: .*\n.*language\.norm"):
        tuna_jax.Tuna.load(tmp_path / "part.safetensors", tokenizer="emoji")


def test_the_package_is_cheap_to_import():
    code = "import sys, tuna_jax; print(sorted({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="has no attribute 'Tunna'"):
        tuna_jax.Tunna  # noqa: B018
