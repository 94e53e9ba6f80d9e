import json
from pathlib import Path

import numpy as np
import pytest

from tuna_jax import sequence
from tuna_jax.sequence import IGNORE, Grid, Special, Text, Visual

SPECIAL = Special(bos=300, eos=301, boi=302, eoi=303, image_pad=304, pad=306)
GRID = Grid(1, 2, 3)
FORMATTERS = json.loads(
    (Path(__file__).parent / "goldens" / "public" / "format_goldens.json").read_text()
)["cases"]


def _golden(function: str) -> list[dict]:
    """Cases without the system tokens that only the released code's templates insert."""
    cases = [case for case in FORMATTERS if case["function"] == function and "output" in case]
    return [case for case in cases if not case["kwargs"].get("system_tokens")]


def _grid(case: dict) -> Grid:
    """A grid with the tokens of a case; the released formatters include the time token in `num_image_tokens`."""
    return Grid(1, 1, case["kwargs"]["num_image_tokens"] - 1)


@pytest.mark.parametrize(
    ("function", "make"),
    [("format_sequence_gen_qwen2_5", sequence.text_to_image),
     ("format_sequence_gen_qwen2_5_edit", sequence.editing)],
)  # fmt: skip
def test_generation_sequences_are_those_of_the_released_formatters(function: str, make) -> None:
    cases = _golden(function)
    compared = 0
    for case in cases:
        built = make(SPECIAL, case["kwargs"]["text_tokens"], _grid(case))
        length = case["kwargs"]["max_seq_len"]
        if len(built.tokens) > length:
            continue  # The released code truncates the text; ours raises, see below.
        compared += 1
        batch = sequence.stack([built], length, len(built.spans), SPECIAL)
        assert batch["tokens"][0].tolist() == case["output"]["text_tokens"]
        assert batch["labels"][0].tolist() == case["output"]["text_labels"]
        assert batch["spans"][0].tolist() == case["output"]["modality_positions"]
        covered = np.zeros(length, int)
        for (offset, size), target in zip(built.spans, built.is_target, strict=True):
            covered[offset : offset + size] = target
        assert covered.tolist() == case["output"]["image_mask"]
    assert compared >= 3


def test_understanding_differs_from_the_released_formatter_only_in_its_labels() -> None:
    for case in _golden("format_sequence_und"):
        prompt = case["kwargs"].get("prompt_tokens") or []
        response = case["kwargs"]["text_tokens"]
        built = sequence.understanding(SPECIAL, prompt, response, _grid(case))
        batch = sequence.stack([built], case["kwargs"]["max_seq_len"], 1, SPECIAL)
        assert batch["tokens"][0].tolist() == case["output"]["text_tokens"]
        assert batch["spans"][0].tolist() == case["output"]["modality_positions"]
        # Our labels cover the response and <eos>; theirs also cover markers before the image.
        theirs = np.asarray(case["output"]["text_labels"])
        start = len(built.tokens) - len(response) - 1
        assert (batch["labels"][0][:start] == IGNORE).all()
        assert batch["labels"][0][start:].tolist() == theirs[start:].tolist()


def test_understanding_prompt_is_the_beginning_of_understanding() -> None:
    whole = sequence.understanding(SPECIAL, [7, 8], [9], GRID)
    prompt = sequence.understanding_prompt(SPECIAL, [7, 8], GRID)
    assert whole.tokens.tolist() == [*prompt.tokens.tolist(), 9, SPECIAL.eos]


def test_generation_and_editing_prompts_are_the_beginning_of_their_sequences() -> None:
    for whole, prompt in (
        (sequence.text_to_image(SPECIAL, [7], GRID), sequence.generation_prompt(SPECIAL, [7])),
        (sequence.editing(SPECIAL, [7], GRID), sequence.editing_prompt(SPECIAL, [7], GRID)),
        (sequence.editing(SPECIAL, [7], GRID, 3), sequence.editing_prompt(SPECIAL, [7], GRID, 3)),
        (
            sequence.image_to_video(SPECIAL, [7], GRID),
            sequence.image_to_video_prompt(SPECIAL, [7], GRID),
        ),
    ):
        assert whole.tokens[: len(prompt.tokens)].tolist() == prompt.tokens.tolist()
        assert whole.spans[-1].tolist() == [len(prompt.tokens), 1 + GRID.tokens]
        assert not prompt.is_target.any()


def test_an_edit_of_several_images_has_each_in_its_marks() -> None:
    built = sequence.editing(SPECIAL, [7, 8], GRID, sources=2)
    pad, around = [SPECIAL.image_pad] * 7, (SPECIAL.boi, SPECIAL.eoi)
    source = [around[0], *pad, around[1]]
    expected = [SPECIAL.bos, *source, *source, 7, 8, *source, SPECIAL.eos]
    assert built.tokens.tolist() == expected
    assert built.spans.tolist() == [[2, 7], [11, 7], [22, 7]]
    assert built.is_target.tolist() == [False, False, True]
    assert (built.labels == IGNORE).all()
    one = sequence.editing(SPECIAL, [7, 8], GRID)
    assert one.tokens.tolist() == [SPECIAL.bos, *source, 7, 8, *source, SPECIAL.eos]


def test_a_clip_follows_its_first_frame() -> None:
    built = sequence.image_to_video(SPECIAL, [7, 8], Grid(3, 2, 3))
    begin, end, pad = SPECIAL.boi, SPECIAL.eoi, SPECIAL.image_pad
    first, clip = [begin, *[pad] * 7, end], [begin, *[pad] * 19, end]
    assert built.tokens.tolist() == [SPECIAL.bos, *first, 7, 8, *clip, SPECIAL.eos]
    assert built.spans.tolist() == [[2, 7], [13, 19]]
    assert built.is_target.tolist() == [False, True]
    assert (built.labels == IGNORE).all()
    sequence.check_spans(built.spans, len(built.tokens))


def test_any_list_of_segments_builds() -> None:
    built = sequence.build(
        [Visual(GRID), Text((1, 2)), Visual(GRID, target=True), Text((3,), learn=True)], SPECIAL
    )
    assert built.spans.tolist() == [[0, 7], [9, 7]]
    assert built.is_target.tolist() == [False, True]
    assert built.labels.tolist() == [IGNORE] * 16 + [3]


def test_padding_is_at_the_end_and_unused_slots_are_marked() -> None:
    text = sequence.text_only([Text((5, 6), learn=True)], SPECIAL)
    batch = sequence.stack([text, sequence.text_to_image(SPECIAL, [4], GRID)], 14, 2, SPECIAL)
    assert batch["tokens"][0].tolist() == [5, 6] + [SPECIAL.pad] * 12
    assert batch["labels"][0, 2:].tolist() == [IGNORE] * 12
    assert batch["spans"].tolist() == [[[-1, -1], [-1, -1]], [[3, 7], [-1, -1]]]
    assert batch["lengths"].tolist() == [2, 12]


def test_the_row_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="row 0: 14 tokens .* 10"):
        sequence.stack([sequence.text_to_image(SPECIAL, [1, 2, 3], GRID)], 10, 1, SPECIAL)
    with pytest.raises(ValueError, match="row 0: 2 visual slots"):
        sequence.stack([sequence.editing(SPECIAL, [1], GRID)], 40, 1, SPECIAL)


@pytest.mark.parametrize(
    ("spans", "match"),
    [
        ([[3, 7], [9, 7]], r"spans\[1\] .* spans\[0\]"),
        ([[15, 7]], r"spans\[0\] .* 20 tokens"),
        ([[-2, 7]], r"spans\[0\]"),
        ([[3, 0]], r"spans\[0\]"),
        ([[3, 6]], r"spans\[0\] .* 1x2x3"),
    ],
)
def test_an_invalid_span_is_named(spans: list, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        sequence.check_spans(np.asarray(spans, np.int32), 20, GRID)


def test_valid_and_unused_spans_pass() -> None:
    sequence.check_spans(np.asarray([[3, 7], [-1, -1], [10, 7]], np.int32), 20, GRID)
