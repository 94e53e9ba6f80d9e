"""Conversations and their templates."""

import numpy as np
import pytest

from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.inference.conversation import Conversation, prompt_tokens
from tuna_jax.sequence import Grid, build

pytestmark = pytest.mark.usefixtures("any_words")

IMAGE, GRID = np.zeros((1, 32, 32, 3), np.uint8), Grid(1, 2, 2)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer("emoji")


def test_turns_become_messages_and_media_precede_the_first_question():
    conversation = Conversation.of([IMAGE, IMAGE], "why?", [("what is this?", "a dog")])
    assert conversation.messages == (
        {"role": "user", "content": "<image>\n<image>\nwhat is this?"},
        {"role": "assistant", "content": "a dog"},
        {"role": "user", "content": "why?"},
    )
    assert len(conversation.media) == 2


@pytest.mark.parametrize(
    ("messages", "media", "match"),
    [
        ((), (), "last message"),
        (({"role": "assistant", "content": "a"},), (), "last message"),
        (({"content": "a"},), (), "'role'"),
        (({"role": "user", "content": "a"},), (IMAGE,), "0 <image>"),
        (({"role": "user", "content": "<image> a"},), (), "1 <image>"),
        (
            ({"role": "user", "content": "<image><image>"},),
            (IMAGE, np.zeros((5, 32, 32, 3), np.uint8)),
            "media",
        ),
    ],
)
def test_an_invalid_conversation_is_rejected(messages, media, match):
    with pytest.raises(ValueError, match=match):
        Conversation(messages, media)


def test_the_plain_template_has_one_image_and_one_question(tokenizer):
    special, slot = tokenizer.special, [tokenizer.special.image_pad] * 5
    conversation = Conversation.of([IMAGE], "what is this?")
    plain = prompt_tokens(tokenizer, conversation, [GRID], "plain")
    ids = tokenizer.encode("what is this?")
    assert plain.tokens.tolist() == [special.bos, special.boi, *slot, special.eoi, *ids]
    assert plain.spans.tolist() == [[2, 5]]
    chat = prompt_tokens(tokenizer, conversation, [GRID])
    assert chat.tokens.tolist() != plain.tokens.tolist()
    override = prompt_tokens(tokenizer, conversation, [GRID], "plain", "chat")
    assert override.tokens.tolist() == chat.tokens.tolist()


def test_other_conversations_of_a_plain_model_take_the_chat_template(tokenizer):
    two_turns = Conversation.of([IMAGE], "why?", [("what is this?", "a dog")])
    by_default = prompt_tokens(tokenizer, two_turns, [GRID], "plain")
    chat = prompt_tokens(tokenizer, two_turns, [GRID], "chat")
    assert by_default.tokens.tolist() == chat.tokens.tolist()
    with pytest.raises(ValueError, match="template='plain'"):
        prompt_tokens(tokenizer, two_turns, [GRID], "plain", "plain")


def test_an_unknown_template_is_named(tokenizer):
    with pytest.raises(ValueError, match="template 'odd'"):
        prompt_tokens(tokenizer, Conversation.of([], "why?"), [], "odd")


def test_what_the_assistant_has_drawn_is_clean_as_in_training(tokenizer):
    messages = (
        {"role": "user", "content": "a dog"},
        {"role": "assistant", "content": [{"type": "image"}]},
        {"role": "user", "content": "what is this?"},
    )
    prompt = prompt_tokens(tokenizer, Conversation(messages, (IMAGE,)), [GRID])
    assert not prompt.is_target.any() and len(prompt.spans) == 1
    trained = build(
        tokenizer.chat([*messages, {"role": "assistant", "content": "a dog"}], grids=[GRID]),
        tokenizer.special,
    )
    np.testing.assert_array_equal(trained.tokens[: len(prompt.tokens)], prompt.tokens)
    assert not trained.is_target.any()
    text = ({**messages[1], "content": "<image>"}, messages[2])
    assert not len(prompt_tokens(tokenizer, Conversation(text), []).spans), "a string is text"
    with pytest.raises(ValueError, match="system's message cannot"):
        Conversation(({**messages[1], "role": "system"}, messages[2]), (IMAGE,))
