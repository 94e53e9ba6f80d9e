"""Scores of questions, on handwritten replies and likelihoods."""

import numpy as np
import pytest

from tuna_jax.evaluation.vqa import metrics
from tuna_jax.evaluation.vqa.metrics import Item

ITEMS = [
    Item("what is it?", ("a cat", "cat"), choices=("a dog", "a cat", "a bird"), where="f:1"),
    Item("which colour?", ("blue",), choices=("red", "blue"), where="f:2"),
    Item("how many?", ("blue",), choices=("blue", "two of them"), where="f:3"),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [(" A  Cat.\n", "a cat"), ('"Two!"', "two"), ("3.5", "3.5"), ("don't", "don't")],
)
def test_texts_are_normalised(text, expected):
    assert metrics.normalised(text) == expected


def test_exact_match_accepts_any_right_answer_and_reports_literal_matches():
    replies = {"what is it?": "Cat.", "which colour?": "blue", "how many?": "two"}
    score, rows = metrics.exact_match(ITEMS, lambda items: [replies[i.question] for i in items])
    assert (score.value, score.count) == (pytest.approx(2 / 3), 3)
    assert score.by == {"letter for letter": pytest.approx(1 / 3)}
    assert score.chance == pytest.approx(2 / 3)  # always answering blue
    assert [row["right"] for row in rows] == [True, True, False]
    with pytest.raises(ValueError, match="2 replies"):
        metrics.exact_match(ITEMS, lambda items: ["a", "b"])


def test_multiple_choice_takes_the_likeliest():
    calls = []

    def likelihood(items, texts):
        calls.extend((item.question, text) for item, text in zip(items, texts, strict=True))
        values = {"a cat": -1.0, "a dog": -2.0, "a bird": -9.0, "red": -0.1, "blue": -3.0}
        return np.array([values.get(text, -4.0) for text in texts]), np.array(
            [len(text.split()) for text in texts]
        )

    score, rows = metrics.multiple_choice(ITEMS, likelihood)
    assert calls[:4] == [
        ("what is it?", "a dog"),
        ("what is it?", "a cat"),
        ("what is it?", "a bird"),
        ("which colour?", "red"),
    ]
    assert [row["reply"] for row in rows] == ["a cat", "red", "blue"]
    assert score.value == pytest.approx(2 / 3)
    assert score.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    # Per token "two of them" has -4/3, and blue -3.
    assert score.by == {"per token": pytest.approx(1 / 3)}
    assert rows[1]["log_probabilities"] == [-0.1, -3.0]


def test_log_likelihood_is_of_the_answers():
    values, rows = metrics.log_likelihood(
        ITEMS[:2], lambda items, texts: (np.array([-3.0, -1.0]), np.array([3, 1]))
    )
    assert values["log_likelihood"] == -2.0
    assert values["per_token"] == -1.0
    assert values["perplexity"] == pytest.approx(np.e)
    assert [row["log_likelihood"] for row in rows] == [-3.0, -1.0]


def test_items_that_do_not_fit_are_named():
    never = lambda items, texts=None: pytest.fail("the model was called")  # noqa: ARG005
    with pytest.raises(ValueError, match="there are no questions"):
        metrics.exact_match([], never)
    with pytest.raises(ValueError, match=r"f:9: 'x' is not among the choices \['a', 'b'\]"):
        metrics.multiple_choice([Item("?", ("x",), choices=("a", "b"), where="f:9")], never)
    with pytest.raises(ValueError, match="f:8: the question has no answer"):
        metrics.log_likelihood([Item("?", (), where="f:8")], never)
