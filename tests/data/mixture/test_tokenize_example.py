"""The sequences of all tasks, against the released formatters where those are correct (model.md sections 5 and 11)."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from tuna_jax import sequence
from tuna_jax.data.invalid_examples import Fault
from tuna_jax.data.mixture.tokenize_example import (
    ACCEPTS,
    caption_prompts,
    check_dropout,
    left_out,
    text_tokens,
    tokenize_example,
)
from tuna_jax.data.sources.jsonl import make_example, named_medium, parse_row
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.sequence import IGNORE, Grid, Special, Text, Visual

GRID = Grid(1, 2, 3)
GOLDENS = json.loads(
    (Path(__file__).parents[2] / "goldens" / "public" / "format_goldens.json").read_text()
)["cases"]
IDS = Special(bos=300, eos=301, boi=302, eoi=303, image_pad=304, pad=306)
IMAGE_MARK = 307


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


def example(**entry):
    medium = functools.partial(named_medium, Path("/images"))
    return make_example(parse_row(json.dumps(entry)), medium, "m.jsonl", 1)


def talk(*texts):
    return [
        {"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)
    ]


def tokenize(example, task, tokenizer, grid=GRID, seed=0, longest=512, **options):
    random = np.random.default_rng(seed)
    return tokenize_example(example, task, tokenizer, grid, random, longest=longest, **options)


def written(result, tokenizer) -> str:
    """A sequence as text, with a span's tokens as one mark."""
    text = tokenizer.decode(result.sequence.tokens, skip_special=False)
    for _, length in result.sequence.spans:
        text = text.replace("<|image_pad|>" * length, "[span]", 1)
    return text.replace("<|im_start|>", "<").replace("<|im_end|>", ">")


def learned(result, tokenizer) -> str:
    labels = result.sequence.labels
    text = tokenizer.decode(labels[labels != IGNORE], skip_special=False)
    at = np.flatnonzero(labels != IGNORE)
    np.testing.assert_array_equal(labels[at], result.sequence.tokens[at])
    return text.replace("<|im_end|>", ">")


# The released conversation formatters, on their own token lists ----------------------------------------------


def turns_of(case):
    """A golden's own tokens as our segments: pieces that end in <eos>, the system's first, the assistant's learned."""
    kwargs, pieces = case["kwargs"], [[]]
    for token in kwargs["text_tokens"]:
        pieces[-1].append(token)
        if token == kwargs["eos_id"]:
            pieces.append([])
    grid = Grid(1, 1, kwargs["num_image_tokens"] - 1)  # theirs counts the time token
    segments = []
    for place, piece in enumerate(pieces):
        # An assistant's piece without <eos> at the end is what follows its turn, or a truncated turn.
        learn = place > 0 and place % 2 == 0 and piece[-1:] == [kwargs["eos_id"]]
        before, mark, after = piece, [], []
        if IMAGE_MARK in piece:
            at = piece.index(IMAGE_MARK)
            before, mark, after = piece[:at], [Visual(grid)], piece[at + 1 :]
        if mark:
            segments += [Text((*before, IDS.boi)), *mark, Text((IDS.eoi, *after))]
        else:
            segments.append(Text(tuple(before), learn=learn))
    return segments


@pytest.mark.parametrize("function", ["format_conversation_und", "format_conversation_und_text"])
def test_conversations_match_the_released_formatter_except_for_the_tail(function) -> None:
    cases = [case for case in GOLDENS if case["function"] == function and "output" in case]
    assert len(cases) == 4
    for case in cases:
        built = sequence.build(turns_of(case), IDS)
        batch = sequence.stack([built], case["kwargs"]["max_seq_len"], 1, IDS)
        assert batch["tokens"][0].tolist() == case["output"]["text_tokens"]
        assert batch["spans"][0].tolist() == case["output"]["modality_positions"]
        theirs, ours = np.array(case["output"]["text_labels"]), batch["labels"][0]
        # Theirs continues after the last <eos> of an assistant, with tokens that belong to no turn.
        last = int(np.flatnonzero(batch["tokens"][0] == IDS.eos)[-1])
        assert ours[: last + 1].tolist() == theirs[: last + 1].tolist()
        assert (ours[last + 1 :] == IGNORE).all()


def released_labels(tokens, eos):
    """The released rule for conversations (checked below): every other piece that ends in <eos>, and the tail."""
    labels = np.full(len(tokens), IGNORE)
    ends = [place for place, token in enumerate(tokens) if token == eos]
    for number in range(2, len(ends), 2):
        labels[ends[number - 1] + 1 : ends[number] + 1] = tokens[
            ends[number - 1] + 1 : ends[number] + 1
        ]
    if len(ends) % 2 == 1 or ends[-1] == len(tokens) - 2:
        labels[ends[-1] + 1 :] = tokens[ends[-1] + 1 :]
    return labels


def test_the_released_rule_matches_the_goldens() -> None:
    for case in GOLDENS:
        if case["function"].startswith("format_conversation_und") and "output" in case:
            tokens = np.array(case["output"]["text_tokens"])
            tokens = tokens[tokens != IDS.pad]
            expected = case["output"]["text_labels"][: len(tokens)]
            assert released_labels(tokens, IDS.eos).tolist() == expected


def test_a_real_conversation_differs_only_in_the_header_of_the_turn(tokenizer) -> None:
    """Theirs also learns the line end before an assistant's turn, its opening, and the last line end."""
    result = tokenize(
        example(image="a.jpg", conversations=talk("<image>\nWhat?", "A dog.", "Big?", "Yes.")),
        "understand",
        tokenizer,
    )
    tokens, ours = result.sequence.tokens, result.sequence.labels
    theirs = released_labels(tokens, tokenizer.special.eos)
    only_theirs = tokens[(theirs != IGNORE) & (ours == IGNORE)]
    opening = [tokenizer.special.bos, *tokenizer.encode("assistant\n")]
    line_end = tokenizer.encode("\n")
    assert only_theirs.tolist() == (line_end + opening) * 2 + line_end
    assert not ((ours != IGNORE) & (theirs == IGNORE)).any()


def test_an_image_by_the_assistant_matches_the_released_formatter_except_at_the_end(
    tokenizer,
) -> None:
    cases = [case for case in GOLDENS if case["function"] == "format_conversation_gen"]
    for case in cases:
        kwargs, theirs = case["kwargs"], case["output"]
        tokens = kwargs["text_tokens"]
        at, start = tokens.index(IMAGE_MARK), len(tokens) - tokens[::-1].index(IDS.eos) - 1
        turn = max(i for i, token in enumerate(tokens[:at]) if token == IDS.eos) + 1
        built = sequence.build(
            [
                Text(tuple(tokens[:turn])),
                Text((*tokens[turn:at], IDS.boi), learn=True),
                Visual(Grid(1, 1, kwargs["num_image_tokens"] - 1), target=True),
                Text((IDS.eoi, *tokens[at + 1 : start])),
                Text((tokens[start],), learn=True),
                Text(tuple(tokens[start + 1 :])),
            ],
            IDS,
        )
        batch = sequence.stack([built], kwargs["max_seq_len"], 1, IDS)
        assert batch["tokens"][0].tolist() == theirs["text_tokens"]
        assert batch["spans"][0].tolist() == theirs["modality_positions"]
        kept = len(built.tokens) - (len(tokens) - start - 1)
        assert batch["labels"][0][:kept].tolist() == theirs["text_labels"][:kept]


# Examples of sources


def test_text_to_image_and_to_video(tokenizer) -> None:
    for task, entry, grid in (
        ("t2i", {"image": "a.jpg"}, GRID),
        ("t2v", {"video": "a.mp4"}, Grid(4, 2, 3)),
    ):
        result = tokenize(
            example(**entry, caption="A dog."), task, tokenizer, grid, text_dropout=0.0
        )
        assert written(result, tokenizer) == "<A dog.<|vision_start|>[span]<|vision_end|>>"
        assert learned(result, tokenizer) == ""
        assert result.sequence.spans[0, 1] == 1 + grid.tokens
        assert result.sequence.is_target.tolist() == [True]
        assert [path.name for path in result.media] == list(entry.values())


def test_captioning_asks_with_one_of_our_prompts(tokenizer) -> None:
    for task, entry in (("understand", {"image": "a"}), ("video_understand", {"video": "a"})):
        seen = set()
        for seed in range(60):
            result = tokenize(example(**entry, caption="A dog."), task, tokenizer, seed=seed)
            text = written(result, tokenizer)
            assert text.startswith("<<|vision_start|>[span]<|vision_end|>")
            assert text.endswith("A dog.>")
            seen.add(text.removesuffix("A dog.>").split("<|vision_end|>")[1])
            assert learned(result, tokenizer) == "A dog.>"
            assert result.sequence.is_target.tolist() == [False]
        assert seen == set(caption_prompts(task))
    assert all("video" in prompt for prompt in caption_prompts("video_understand"))


def test_conversations_with_several_images_and_turns(tokenizer) -> None:
    texts = ("Is <image> like <image>\n?", "No.", "<image>\nAnd this?", "Yes, a bit.")
    result = tokenize(
        example(image=["a", "b", "c"], conversations=talk(*texts)), "understand", tokenizer
    )
    span = "<|vision_start|>[span]<|vision_end|>"
    assert written(result, tokenizer).split("assistant.>\n")[1] == (
        f"<user\nIs {span} like {span}?>\n<assistant\nNo.>\n"
        f"<user\n{span}And this?>\n<assistant\nYes, a bit.>\n"
    )
    assert learned(result, tokenizer) == "No.>Yes, a bit.>"
    assert [path.name for path in result.media] == ["a", "b", "c"]
    assert result.sequence.is_target.tolist() == [False] * 3


def test_text_only_and_clips_in_conversations(tokenizer) -> None:
    result = tokenize(example(conversations=talk("Hi.", "Hello.")), "chat", tokenizer)
    assert result.sequence.spans.shape == (0, 2)
    assert learned(result, tokenizer) == "Hello.>"
    conversation = example(video="a.mp4", conversations=talk("<video>\nWhat?", "A dog runs."))
    result = tokenize(conversation, "video_understand", tokenizer, Grid(2, 2, 2))
    assert "<user\n<|vision_start|>[span]<|vision_end|>What?>" in written(result, tokenizer)
    assert result.sequence.spans[0, 1] == 9


def test_an_assistant_may_generate_an_image_at_the_end(tokenizer) -> None:
    texts = ("<image>\nMake it red.", "Here it is: <image>")
    result = tokenize(
        example(image=["a", "b"], conversations=talk(*texts)), "understand", tokenizer
    )
    assert result.sequence.is_target.tolist() == [False, True]
    assert learned(result, tokenizer) == "Here it is: <|vision_start|>>"
    assert written(result, tokenizer).endswith(
        "<assistant\nHere it is: <|vision_start|>[span]<|vision_end|>>\n"
    )


SPAN = "<|vision_start|>[span]<|vision_end|>"
EDIT = {"raw_image": "a.jpg", "out_image": "b.jpg", "instruction": "Make it red."}


def test_editing(tokenizer) -> None:
    result = tokenize(example(**EDIT), "edit", tokenizer, text_dropout=0.0)
    span = "<|vision_start|>[span]<|vision_end|>"
    assert written(result, tokenizer) == f"<{span}Make it red.{span}>"
    assert result.sequence.is_target.tolist() == [False, True]
    assert [path.name for path in result.media] == ["a.jpg", "b.jpg"]


def test_dropout_of_text_and_source(tokenizer) -> None:
    span = "<|vision_start|>[span]<|vision_end|>"
    seen: dict[tuple[str, str], int] = {}
    for seed in range(400):
        options = {"text_dropout": 0.3, "source_dropout": 0.2}
        result = tokenize(example(**EDIT), "edit", tokenizer, seed=seed, **options)
        key = (written(result, tokenizer), ",".join(path.name for path in result.media))
        seen[key] = seen.get(key, 0) + 1
    assert set(seen) == {
        (f"<{span}Make it red.{span}>", "a.jpg,b.jpg"),
        (f"<{span}{span}>", "a.jpg,b.jpg"),
        (f"<Make it red.{span}>", "b.jpg"),
        (f"<{span}>", "b.jpg"),
    }
    no_text = seen[f"<{span}{span}>", "a.jpg,b.jpg"] + seen[f"<{span}>", "b.jpg"]
    assert 90 <= no_text <= 150
    empty = sum(
        written(
            tokenize(example(image="a", caption="A dog."), "t2i", tokenizer, seed=seed), tokenizer
        )
        == f"<{span}>"
        for seed in range(400)
    )
    assert 25 <= empty <= 60, "the default caption dropout is 0.1"


def test_an_edit_of_several_images(tokenizer) -> None:
    several = example(raw_image=["a", "b"], out_image="c", instruction="Both.")
    result = tokenize(several, "edit", tokenizer, text_dropout=0.0)
    assert written(result, tokenizer) == f"<{SPAN}{SPAN}Both.{SPAN}>"
    assert result.sequence.is_target.tolist() == [False, False, True]
    assert [path.name for path in result.media] == ["a", "b", "c"]
    dropped = tokenize(several, "edit", tokenizer, text_dropout=0.0, source_dropout=1.0)
    assert written(dropped, tokenizer) == f"<Both.{SPAN}>"
    assert [path.name for path in dropped.media] == ["c"]
    assert text_tokens(several, "edit", tokenizer) == len(result.sequence.tokens) - 3 * 7


def test_a_clip_that_continues_its_first_frame(tokenizer) -> None:
    source, grid = example(video="a.mp4", caption="It runs."), Grid(3, 2, 2)
    result = tokenize(source, "i2v", tokenizer, grid, text_dropout=0.0)
    assert written(result, tokenizer) == f"<{SPAN}It runs.{SPAN}>"
    assert result.sequence.spans[:, 1].tolist() == [5, 13]
    assert result.sequence.is_target.tolist() == [False, True]
    assert [path.name for path in result.media] == ["a.mp4", "a.mp4"]
    without = tokenize(source, "i2v", tokenizer, grid, text_dropout=0.0, source_dropout=1.0)
    assert written(without, tokenizer) == f"<It runs.{SPAN}>"
    assert without.sequence.spans[:, 1].tolist() == [13] and len(without.media) == 1
    cut = tokenize(source, "i2v", tokenizer, grid, longest=26, text_dropout=0.0)
    assert len(cut.sequence.tokens) == 26 and written(cut, tokenizer) == f"<{SPAN}It runs{SPAN}>"


def test_three_probabilities_that_exclude_each_other(tokenizer) -> None:
    """Of a number below 0.2 the text is left out, from there to 0.3 the source, from there to 0.6 both."""
    options = {"text_dropout": 0.2, "source_dropout": 0.1, "both_dropout": 0.3}
    seen = set()
    for seed in range(100):
        number = np.random.default_rng(seed).random()
        result = tokenize(example(**EDIT), "edit", tokenizer, seed=seed, **options)
        left = "Make" not in written(result, tokenizer), len(result.media) == 1
        seen.add(left)
        assert left == (number < 0.2 or 0.3 <= number < 0.6, 0.2 <= number < 0.6)
    assert len(seen) == 4


def test_dropout_without_both_has_the_random_numbers_of_before() -> None:
    for seed in range(20):
        first, second = np.random.default_rng(seed).random(2)
        drawn = left_out(np.random.default_rng(seed), 0.3, 0.2, None)
        assert drawn == (first < 0.3, second < 0.2)
    with pytest.raises(ValueError, match=r"source_dropout 0\.6, both_dropout 0\.1 are more than 1"):
        check_dropout(0.4, 0.6, 0.1)
    with pytest.raises(ValueError, match="both_dropout is 1.5"):
        check_dropout(0.1, 0.1, 1.5)


def test_only_a_caption_that_conditions_is_truncated(tokenizer) -> None:
    words = "one two three four five six seven eight nine ten"
    result = tokenize(
        example(image="a", caption=words), "t2i", tokenizer, longest=16, text_dropout=0.0
    )
    assert len(result.sequence.tokens) == 16
    assert (
        written(result, tokenizer)
        == "<one two three four five<|vision_start|>[span]<|vision_end|>>"
    )
    for task, entry in (
        ("understand", {"image": "a", "caption": words}),
        ("edit", {**EDIT, "instruction": words}),
        ("chat", {"conversations": talk(words, words)}),
    ):
        with pytest.raises(Fault, match="length, 20") as raised:
            tokenize(example(**entry), task, tokenizer, longest=20, text_dropout=0.0)
        assert raised.value.kind == "too_long"


def test_tokens_are_counted_without_a_sequence(tokenizer) -> None:
    examples = {
        "t2i": example(image="a", caption="A dog, 12 cats."),
        "understand": example(image="a", conversations=talk("<image>\nWhat is it?", "A dog.")),
        "chat": example(conversations=talk("Hi.", "Hello.", "And?", "So.")),
        "edit": example(**EDIT),
        "video_understand": example(video="a", caption="A dog runs."),
        "t2v": example(video="a", caption="A dog runs."),
        "i2v": example(video="a", caption="A dog runs."),
    }
    assert set(examples) == set(ACCEPTS)
    for task, source in examples.items():
        lengths = set()
        for seed in range(40):
            result = tokenize(source, task, tokenizer, seed=seed, text_dropout=0.0).sequence
            lengths.add(len(result.tokens) - int(result.spans[:, 1].sum()))
        assert max(lengths) == text_tokens(source, task, tokenizer)


def test_an_example_of_another_task_is_named(tokenizer) -> None:
    with pytest.raises(Fault, match="task 't2i'"):
        text_tokens(example(**EDIT), "t2i", tokenizer)
