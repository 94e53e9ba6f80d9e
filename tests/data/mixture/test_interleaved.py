"""Pictures and text in turns: which rows a conversation has, and what each shows, draws and learns."""

import numpy as np
import pytest

from tests.data.mixture.test_tokenize_example import (
    GRID,
    SPAN,
    example,
    learned,
    talk,
    tokenize,
    tokenizer,
    written,
)
from tuna_jax.data.invalid_examples import Fault
from tuna_jax.data.mixture.tokenize_example import tokenize_example

__all__ = ["tokenizer"]  # A fixture.

TURNS = (
    "Draw a dog.",
    "Gladly. <image> And now?",
    "Like <image>\nthis.",
    "<image>",
    "Thanks.",
    "Any time.",
)


def rows_of(tokenizer, conversations, count, **options):
    """The rows of a conversation with images 0, 1, ...: (text after the system's, learned, targets, media)."""
    source = example(image=[str(i) for i in range(count)], conversations=conversations)
    rows = {}
    for seed in range(60):
        result = tokenize(source, "understand", tokenizer, seed=seed, **options)
        text = written(result, tokenizer).split("assistant.>\n")[1]
        media = "".join(path.name for path in result.media)
        rows[media, text] = (learned(result, tokenizer), result.sequence.is_target.tolist())
    return rows


def test_pictures_and_text_in_turns_are_a_row_per_drawn_picture(tokenizer) -> None:
    """The assistant draws images 0 and 2; the third row learns the text behind them, with all images clean."""
    rows = rows_of(tokenizer, talk(*TURNS), 3)
    first = f"<user\nDraw a dog.>\n<assistant\nGladly. {SPAN}"
    second = f"{first} And now?>\n<user\nLike {SPAN}this.>\n<assistant\n{SPAN}>\n"
    whole = f"{second}<user\nThanks.>\n<assistant\nAny time.>\n"
    before = "Gladly. <|vision_start|>"
    assert rows == {
        ("0", first): (before, [True]),
        ("012", second): (f"{before} And now?><|vision_start|>>", [False, False, True]),
        ("012", whole): (f"{before} And now?><|vision_start|>>Any time.>", [False] * 3),
    }


def test_a_picture_of_a_turn_that_is_not_learned_is_shown(tokenizer) -> None:
    turns = talk(*TURNS)
    turns[1]["loss"] = False
    assert {media for media, _ in rows_of(tokenizer, turns, 3)} == {"012"}
    turns = talk(*TURNS[:4], "And?", "<image>")
    turns[5]["loss"] = False
    rows = rows_of(tokenizer, turns, 4)
    assert {media: targets for (media, _), (_, targets) in rows.items()} == {
        "0": [True],
        "012": [False, False, True],
    }


def test_a_stream_that_does_not_draw_learns_only_text(tokenizer) -> None:
    rows = rows_of(tokenizer, talk(*TURNS), 3, draws=False)
    assert [targets for _, targets in rows.values()] == [[False] * 3]
    with pytest.raises(Fault, match="draws=True") as raised:
        rows_of(tokenizer, talk(*TURNS[:4]), 3, draws=False)
    assert raised.value.kind == "assistant_image"


def test_the_row_of_a_conversation_follows_from_the_random_state(tokenizer) -> None:
    source = example(image=["0", "1", "2"], conversations=talk(*TURNS))
    chosen = [
        [len(tokenize(source, "understand", tokenizer, seed=seed).media) for seed in range(40)]
        for _ in range(2)
    ]
    assert chosen[0] == chosen[1] and 5 < chosen[0].count(1) < 25
    # One that ends in its only picture takes no random number: rows of earlier versions stay as they were.
    random = np.random.default_rng(3)
    single = example(image="a", conversations=talk("Draw.", "<image>"))
    tokenize_example(single, "understand", tokenizer, GRID, random, longest=512)
    after = np.random.default_rng(3)
    after.random(2)
    assert random.random() == after.random()


def test_until_must_be_a_picture_of_the_assistants(tokenizer) -> None:
    messages = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "A dog."}]
    with pytest.raises(ValueError, match="until is 0"):
        tokenizer.chat(messages, grids=[GRID], until=0)
