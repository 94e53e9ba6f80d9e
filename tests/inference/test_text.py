"""Answers of a tiny random model: what they depend on, streams, and which options are rejected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fixtures.random_images import random_image
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.generation import text_decoder
from tuna_jax.inference.text import groups_of_equal_media
from tuna_jax.sequence import Grid, build

pytestmark = pytest.mark.usefixtures("any_words")


def _logits(tuna, conversation: Conversation) -> jax.Array:
    prefix = tuna.prefix([tuna.prompt_tokens(conversation)], [conversation.media])
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


def test_an_answer_depends_on_media_question_and_history(tuna):
    image, other = random_image(0)[None], random_image(1)[None]
    conversation = Conversation.of([image], "what is this?")
    reference = _logits(tuna, conversation)
    np.testing.assert_array_equal(reference, _logits(tuna, conversation))
    for changed in (
        Conversation.of([other], "what is this?"),
        Conversation.of([image], "what colour is the background?"),
        Conversation.of([image], "what is this?", [("what is this?", "a dog")]),
        Conversation.of([image, other], "what is this?"),
        Conversation.of([np.concatenate([image] * 5)], "what is this?"),
        Conversation.of([], "what is this?"),
    ):
        assert float(jnp.abs(_logits(tuna, changed) - reference).max()) > 1e-3
    two = _logits(tuna, Conversation.of([image, other], "what is this?"))
    swapped = _logits(tuna, Conversation.of([other, image], "what is this?"))
    assert float(jnp.abs(two - swapped).max()) > 1e-3


def test_an_answer_is_the_decoders_result(tuna):
    image, history = random_image(0), [("and this?", "a cat")]
    conversation = Conversation.of([image[None]], "what is this?", history)
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
    assert tuna.prompt_tokens(conversation).tokens.tolist() == sequence.tokens.tolist()
    decoded = text_decoder.generate(
        tuna.config,
        tuna.params,
        tuna.prefix([sequence], [[image[None]]]),
        jax.random.key(0),
        eos=tuna.tokenizer.special.eos,
        max_new_tokens=6,
    )
    ids = [i for i in decoded.tokens[0].tolist() if i < tuna.tokenizer.size]
    answer = tuna.answer(image, "what is this?", history=history, max_new_tokens=6)
    assert answer == tuna.tokenizer.decode(ids)
    messages = [{"role": "user", "content": "<image>\nand this?"}, *conversation.messages[1:]]
    assert tuna.chat(messages, image, max_new_tokens=6) == answer


def test_replies_keep_their_order_whatever_their_media(tuna):
    image = random_image(0)[None]
    conversations = [
        Conversation.of([], "hello"),
        Conversation.of([image], "what is this?"),
        Conversation.of([image, image], "what differs?"),
        Conversation.of([], "what is this?"),
        Conversation.of([np.concatenate([image] * 5)], "what happens?"),
    ]
    together = tuna.reply(conversations, max_new_tokens=4)
    assert together == [tuna.reply([single], max_new_tokens=4)[0] for single in conversations]


def test_conversations_with_equal_media_share_a_group():
    image, clip = np.zeros((1, 8, 8, 3), np.uint8), np.zeros((5, 8, 8, 3), np.uint8)
    media = [[], [image], [clip], [], [image, image], [image]]
    conversations = [Conversation.of(clips, "what?") for clips in media]
    assert groups_of_equal_media(conversations) == [[0, 3], [1, 5], [2], [4]]


def test_sampled_answers_depend_only_on_their_seed_and_index(tuna):
    conversations = [Conversation.of([], "hello")] * 3
    options = {"max_new_tokens": 8, "temperature": 1.0}
    answers = tuna.reply(conversations, seed=2, **options)
    assert len(set(answers)) == 3
    assert answers == tuna.reply(conversations, seed=2, **options)
    assert answers[1:] == tuna.reply(conversations[1:], seed=[(2, 1), (2, 2)], **options)
    assert answers != tuna.reply(conversations, seed=3, **options)
    assert len(set(tuna.reply(conversations, seed=2, top_k=1, **options))) == 1


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.0, "top_p": 0.9, "seed": 4}], ids=["greedy", "sampled"]
)
def test_a_streamed_answer_is_the_answer_in_parts(tuna, options):
    image, options = random_image(0), {"max_new_tokens": 20, **options}
    parts = list(tuna.stream_answer(image, "what is this?", **options))
    answer = tuna.answer(image, "what is this?", **options)
    assert len(parts) > 1 and "".join(parts) == answer
    messages = [{"role": "user", "content": "what is this?"}]
    assert "".join(tuna.stream_chat(messages, **options)) == tuna.chat(messages, **options)


def test_a_stream_rejects_options_before_its_first_part(tuna):
    with pytest.raises(ValueError, match="temperature"):
        tuna.stream_answer(None, "hello", temperature=-1.0)
    with pytest.raises(ValueError, match="template 'odd'"):
        tuna.stream_answer(None, "hello", template="odd")


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda t: t.answer(np.zeros((64, 64)), "?"), r"float64 \[64, 64\]"),
        (lambda t: t.answer(np.zeros((4, 64, 64, 3), np.uint8), "?"), "4 frames"),
        (lambda t: t.answer([random_image(0), np.zeros((5, 64, 64, 3), np.uint8)], "?"), "media"),
        (lambda t: t.answer(random_image(0), "<image> ?"), "2 <image>"),
        (lambda t: t.answer(None, "?", template="odd"), "template 'odd'"),
        (lambda t: t.answer(None, "?", template="plain"), "template='plain'"),
        (lambda t: t.answer(None, "?", top_p=1.5), "top_p"),
        (lambda t: t.answer(None, "?", top_k=-1), "top_k"),
        (lambda t: t.answer(None, "?", max_new_tokens=0), "max_new_tokens"),
        (lambda t: t.reply([Conversation.of([], "?")], seed=[1, 2]), "2 seeds"),
        (lambda t: t.chat([{"role": "assistant", "content": "a"}]), "last message"),
        (lambda t: t.chat([{"role": "user"}]), "'content'"),
    ],
)
def test_an_invalid_option_is_named(tuna, call, match):
    with pytest.raises(ValueError, match=match):
        call(tuna)
