r"""Places of images in messages: tags, the escape `\<image>`, and parts, where nothing needs escaping."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_jax.data.invalid_examples import Fault
from tuna_jax.data.sources import jsonl
from tuna_jax.data.text import messages
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.inference.conversation import Conversation, media_of, prompt_tokens
from tuna_jax.inference.media_inputs import ImageFile, VideoFile
from tuna_jax.sequence import Grid, Text, build

BOUNDED = settings(derandomize=True, max_examples=200, deadline=None)
GRID = Grid(1, 1, 1)
IMAGE = np.zeros((1, 32, 32, 3), np.uint8)
TEXTS = st.lists(st.sampled_from(["<image>", "\\", "\n", "a", "<video>", "<im"])).map("".join)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


@BOUNDED
@given(TEXTS)
def test_an_escaped_text_means_itself(text):
    assert messages.count_tags(messages.escape(text)) == 0
    assert messages.parts_of(messages.escape(text)) == [text]


@BOUNDED
@given(st.lists(TEXTS.filter(lambda text: not text.endswith("\\")), min_size=1, max_size=4))
def test_tags_between_escaped_texts_are_their_places(texts):
    content = "<image>\n".join(map(messages.escape, texts))
    assert messages.count_tags(content) == len(texts) - 1
    parts = messages.parts_of(content)
    assert [part for part in parts if part is not None] == texts


def test_a_literal_tag_in_a_question(tokenizer):
    """Report 16: what does the <image> tag mean?"""
    literal = "what does the <image> tag mean?"
    conversation = Conversation.of([IMAGE], messages.escape(literal))
    sequence = prompt_tokens(tokenizer, conversation, [GRID])
    text = tokenizer.decode(sequence.tokens)
    assert literal in text and len(sequence.spans) == 1
    with pytest.raises(ValueError, match=r"2 <image> tags for 1 .*\\<image> is the text"):
        Conversation.of([IMAGE], literal)
    parts = [{"type": "image"}, {"type": "text", "text": literal}]
    same = Conversation(({"role": "user", "content": parts},), (IMAGE,))
    np.testing.assert_array_equal(prompt_tokens(tokenizer, same, [GRID]).tokens, sequence.tokens)
    plain = prompt_tokens(tokenizer, same, [GRID], "plain")
    assert tokenizer.decode(plain.tokens) == literal


def test_an_answer_with_the_tag_is_text(tokenizer):
    """What the model said is no place of an image, in the history of `answer` and in messages."""
    turns = [("q", "the <image> tag")]
    conversation = Conversation.of([IMAGE], "why?", turns)
    assert len(prompt_tokens(tokenizer, conversation, [GRID]).spans) == 1
    raw = [
        {"role": "system", "content": "the <image> tag"},
        {"role": "user", "content": "<image>\nq"},
        {"role": "assistant", "content": "the <image> tag"},
        {"role": "user", "content": "why?"},
    ]
    sequence = prompt_tokens(tokenizer, Conversation(tuple(raw), (IMAGE,)), [GRID])
    assert tokenizer.decode(sequence.tokens).count("the <image> tag") == 2


def test_media_of_parts_and_of_the_call_are_taken_in_order():
    content = [
        {"type": "image", "image": "a.png"},
        {"type": "text", "text": "<image>"},
        {"type": "image"},
        {"type": "video", "url": "c.mp4"},
    ]
    turns = [{"role": "user", "content": content}, {"role": "user", "content": "<image> \\<image>"}]
    assert media_of(turns, ["b.png", "d.png"]) == [
        *(ImageFile("a.png"), ImageFile("b.png"), VideoFile("c.mp4"), "d.png")
    ]
    with pytest.raises(ValueError, match="2 <image> tags for 1 images"):
        media_of(turns, ["b.png"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (3, "is a int"),
        ([3], r"content\[0\] is not a part"),
        ([{"type": "text"}], r"content\[0\].*'text'"),
        ([{"type": "audio"}], r"content\[0\] is not a part"),
        ("\ud83d", "half of a surrogate pair"),
        ([{"type": "text", "text": "\ud83d"}], "half of a surrogate pair"),
    ],
)
def test_wrong_content_is_named(content, words):
    with pytest.raises(ValueError, match=rf"messages\[0\].*{words}"):
        Conversation(({"role": "user", "content": content},))


def test_manifests_have_the_same_escape(tmp_path, tokenizer):
    def row(question, answer, **media):
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return jsonl.make_example(
            {**media, "conversations": turns}, lambda _, name: Path(name), "m", 1
        )

    example = row("<image>\nwhat is \\<image>?", "a \\<image> tag", image="a.png")
    turns = [{"role": turn.role, "content": turn.text} for turn in example.turns]
    segments = tokenizer.chat(turns, grids=[GRID])
    text = tokenizer.decode(build(segments, tokenizer.special).tokens)
    assert "what is <image>?" in text and "a <image> tag" in text
    learnt = [segment for segment in segments if isinstance(segment, Text) and segment.learn]
    assert tokenizer.decode(learnt[0].ids) == "a <image> tag"
    with pytest.raises(Fault, match=r"\\<image> is the text <image>"):
        row("<image>\nwhat is <image>?", "a tag", image="a.png")
    video = row("<video> and \\<video>", "x", video="a.mp4")
    assert video.turns[0].text == "<image> and <video>"
