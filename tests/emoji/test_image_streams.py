"""Image batches: their arrays, agreement with the scenes, and exact resumption."""

import numpy as np
import pytest

from tuna_jax.data import loader
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.emoji import image_streams
from tuna_jax.emoji.latent_pool import LatentPool
from tuna_jax.emoji.world.captions import captions, questions, sentence
from tuna_jax.emoji.world.scenes import SceneSource
from tuna_jax.sequence import IGNORE, Grid

LENGTH = 48
SHAPE = (1, 4, 4, 6)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer("emoji")


def marked_pool(seed, count=60, std=0.0):
    """A pool whose latents are the index of their scene."""
    mean = np.broadcast_to(
        np.arange(count, dtype=np.float32)[:, None, None, None, None], (count, *SHAPE)
    )
    return LatentPool(SceneSource("train", seed), mean, np.full_like(mean, std))


def mixture(tokenizer, seed=0, std=0.0, **options):
    generation = image_streams.text_to_image_stream(
        marked_pool(1, std=std), tokenizer, rows=16, seed=seed
    )
    understanding = image_streams.understanding_stream(
        marked_pool(2, std=std), tokenizer, rows=8, seed=seed + 100
    )
    return image_streams.batches([generation, understanding], tokenizer, length=LENGTH, **options)


def test_batch_arrays(tokenizer):
    batch = mixture(tokenizer)[5]
    kinds = {key: (array.shape, array.dtype.name) for key, array in batch.items()}
    assert kinds == {
        "tokens": ((24, LENGTH), "int32"),
        "labels": ((24, LENGTH), "int32"),
        "spans": ((24, 1, 2), "int32"),
        "is_target": ((24, 1), "bool"),
        "latents": ((24, 1, *SHAPE), "float32"),
        "stream": ((24,), "int32"),
    }
    np.testing.assert_array_equal(batch["stream"], [0] * 16 + [1] * 8)
    np.testing.assert_array_equal(batch["is_target"][:, 0], batch["stream"] == 0)
    special = tokenizer.special
    for row in range(24):
        offset, length = batch["spans"][row, 0]
        assert length == 17
        assert batch["tokens"][row, offset - 1] == special.boi
        assert (batch["tokens"][row, offset : offset + length] == special.image_pad).all()
        assert batch["tokens"][row, offset + length] == special.eoi


def texts_of(batch, row, tokenizer):
    """(text before the visual span, text after it) of a row, without special tokens."""
    offset, length = batch["spans"][row, 0]
    tokens = batch["tokens"][row]
    return tokenizer.decode(tokens[:offset]), tokenizer.decode(tokens[offset + length :])


def test_text_describes_the_scene_of_the_latents(tokenizer):
    """Each row's text is about the scene of its latents; labels cover only the answer."""
    batches = mixture(tokenizer)
    empty, formal = 0, 0
    for n in range(40):
        batch = batches[n]
        for row in range(24):
            index = int(batch["latents"][row].flat[0])
            assert (batch["latents"][row] == index).all()
            before, after = texts_of(batch, row, tokenizer)
            labels = batch["labels"][row]
            if batch["stream"][row] == 0:
                assert after == ""
                assert (labels == IGNORE).all()
                phrasings = captions(SceneSource("train", 1)[index])
                empty += before == ""
                formal += before.endswith(".")
                assert before in {"", *phrasings, *map(sentence, phrasings)}
            else:
                assert before == ""
                learned = labels[labels != IGNORE]
                assert learned[-1] == tokenizer.special.eos
                answer = tokenizer.decode(learned)
                expected = {
                    (question, item.answer)
                    for item in questions(SceneSource("train", 2)[index])
                    for question in (item.question, sentence(item.question))
                }
                assert after.endswith(answer)
                assert (after.removesuffix(answer), answer) in expected
                at = np.flatnonzero(labels != IGNORE)
                np.testing.assert_array_equal(labels[at], batch["tokens"][row][at])
    assert 0.05 < empty / 640 < 0.16, "caption dropout should be 0.1"
    assert 0.04 < formal / 640 < 0.16


def same(a, b):
    return all(np.array_equal(a[key], b[key]) for key in a)


def test_random_access_equals_iteration(tokenizer):
    batches = mixture(tokenizer, std=1.0)
    iterator = loader.iterate(batches)
    for n in range(6):
        assert same(next(iterator), batches[n])
    again = mixture(tokenizer, std=1.0)
    assert same(again[3], batches[3])
    assert not same(mixture(tokenizer, seed=1, std=1.0)[3], batches[3])


def test_the_iterator_resumes_exactly(tokenizer):
    batches = mixture(tokenizer, std=1.0)
    iterator = loader.iterate(batches)
    for _ in range(7):
        next(iterator)
    state = iterator.get_state()
    uninterrupted = [next(iterator) for _ in range(3)]
    resumed = loader.iterate(mixture(tokenizer, std=1.0))
    resumed.set_state(state)
    for batch in uninterrupted:
        assert same(next(resumed), batch)


def test_an_epoch_has_every_scene_once_in_a_new_order(tokenizer):
    stream = image_streams.text_to_image_stream(marked_pool(1), tokenizer, rows=4, seed=3)
    indices = [int(stream.samples[i].latents.flat[0]) for i in range(180)]
    epochs = [indices[i : i + 60] for i in (0, 60, 120)]
    assert all(sorted(epoch) == list(range(60)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_repeated_scene_has_other_phrasings_and_noise(tokenizer):
    stream = image_streams.text_to_image_stream(marked_pool(1, count=1, std=1.0), tokenizer, rows=1)
    samples = [stream.samples[i] for i in range(40)]
    assert len({sample.sequence.tokens.tobytes() for sample in samples}) > 2
    assert len({sample.latents.tobytes() for sample in samples}) == 40


def test_hosts_divide_a_batch(tokenizer):
    whole = mixture(tokenizer, std=1.0)[4]
    parts = [mixture(tokenizer, std=1.0, process_index=i, process_count=2)[4] for i in range(2)]
    assert parts[0]["tokens"].shape == (12, LENGTH)
    np.testing.assert_array_equal(whole["stream"], [0] * 16 + [1] * 8)
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)


def test_longest_row_fits(tokenizer):
    longest = image_streams.longest_row(tokenizer, Grid(1, 4, 4), scenes=400)
    assert 36 <= longest <= LENGTH
    with pytest.raises(ValueError, match="exceed"):
        short = image_streams.text_to_image_stream(
            marked_pool(1), tokenizer, rows=8, caption_dropout=0.0
        )
        image_streams.batches([short], tokenizer, length=22)[0]


def test_question_weights_choose_the_kinds(tokenizer):
    weights = {"name": 1.0, "ground": 1e-9}
    stream = image_streams.understanding_stream(
        marked_pool(2), tokenizer, rows=1, question_weights=weights, sentences=0.0
    )
    texts = [tokenizer.decode(stream.samples[i].sequence.tokens) for i in range(60)]
    for text, index in zip(texts, range(60), strict=True):
        scene = SceneSource("train", 2)[int(stream.samples[index].latents.flat[0])]
        singular = scene.layout in ("single",)
        plural = scene.layout == "count"
        assert text.startswith(
            "what is this?" if singular else "what are these?" if plural else "what colour"
        )


def test_invalid_settings_are_errors(tokenizer):
    with pytest.raises(ValueError, match=r"question_weights.*colour"):
        image_streams.understanding_stream(
            marked_pool(2), tokenizer, rows=8, question_weights={"colour": 1.0}
        )
    with pytest.raises(ValueError, match="question_weights"):
        image_streams.understanding_stream(
            marked_pool(2), tokenizer, rows=8, question_weights={"name": 1.0}
        )
    stream = image_streams.text_to_image_stream(marked_pool(1), tokenizer, rows=9)
    with pytest.raises(ValueError, match=r"'t2i'.*9 rows.*2 hosts"):
        image_streams.batches([stream], tokenizer, length=LENGTH, process_count=2)
