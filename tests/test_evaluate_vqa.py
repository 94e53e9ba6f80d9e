"""The command on files and on a TFDS data set: which questions the model gets, and what is refused."""

import json

import numpy as np
import pytest

from tuna_jax import evaluate_vqa
from tuna_jax.emoji.evaluation import write_questions
from tuna_jax.evaluation.vqa import datasets
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.scoring import likelihoods

pytestmark = pytest.mark.usefixtures("any_words")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    write_questions.write(folder, 4)
    return folder


def _run(tiny_model, output, *arguments):
    flags = [f"--model={tiny_model}", "--tokenizer=emoji", f"--output={output}", *arguments]
    assert evaluate_vqa.main(flags) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_files_of_the_emoji_world_are_reproducible_and_have_their_answers(folder, tmp_path):
    write_questions.write(tmp_path, 4)
    for name in ("pictures.jsonl", "clips.jsonl", "media/picture_0001.png"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    for name in ("pictures.jsonl", "clips.jsonl"):
        lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        assert len(lines) == 4
        assert all(len({*line["choices"]}) == 4 for line in lines)
        assert all(line["answer"] in line["choices"] for line in lines)
        assert len({line["kind"] for line in lines}) == 2


@pytest.mark.parametrize(("name", "key"), [("pictures.jsonl", "image"), ("clips.jsonl", "video")])
def test_replies_are_the_models_answers(folder, tmp_path, tiny_model, tuna, name, key):
    rows = _run(tiny_model, tmp_path / "a.jsonl", f"--questions={folder / name}", "--count=2")
    assert len(rows) == 2
    lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    for row, line in zip(rows, lines, strict=False):
        reply = tuna.answer(folder / line[key], line["question"], max_new_tokens=32)
        assert row == {**row, "question": line["question"], "reply": reply, "right": False}


def test_choices_and_answers_are_judged_by_their_likelihood(
    folder, tmp_path, tiny_model, tuna, capsys
):
    file = f"--questions={folder / 'pictures.jsonl'}"
    chosen = _run(tiny_model, tmp_path / "a.jsonl", file, "--task=multiple_choice")
    assert "chance 25.0 %  n=4" in capsys.readouterr().out
    scored = _run(tiny_model, tmp_path / "b.jsonl", file, "--task=log_likelihood")
    assert "perplexity" in capsys.readouterr().out
    for row, other, item in zip(
        chosen, scored, datasets.read_lines(folder / "pictures.jsonl"), strict=True
    ):
        conversations = [Conversation.of(tuna.load_media(item.media), item.question)] * 4
        scores = likelihoods(tuna, conversations, item.choices)
        np.testing.assert_allclose(row["log_probabilities"], scores.log_probability, atol=2e-3)
        assert row["reply"] == item.choices[int(np.argmax(scores.log_probability))]
        index = item.choices.index(item.answers[0])
        assert other["log_likelihood"] == pytest.approx(scores.log_probability[index], abs=2e-3)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", ":1: not JSON"),
        ("[[]]", "item 1: .*list"),
        ('{"question": "q", "answers": "a"}', ":1: unknown key 'answers'"),
        ('{"answer": "a"}', ":1: 'question' must be a text"),
        ('{"question": "q"}', ":1: 'answer' is None"),
        ('{"question": "q", "answer": 2, "choices": ["a", "b"]}', ":1: 'answer' 2"),
        (
            '{"question": "q", "answer": "a", "image": "x", "video": "y"}',
            "'image' or 'video'",
        ),
        ("", "has no questions"),
    ],
)
def test_an_invalid_line_is_named(tmp_path, line, words):
    path = tmp_path / "q.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=words):
        datasets.read_lines(path)


def test_an_answer_may_be_an_index_or_several_texts(tmp_path):
    path = tmp_path / "q.jsonl"
    lines = [
        {"question": "q", "answer": 1, "choices": ["a", "b"]},
        {"question": "q", "answer": ["a", "b"], "image": ["x.png", "y.png"]},
        {"question": "q", "answer": "no"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    items = datasets.read_lines(path, ["yes", "no"])
    assert [item.answers for item in items] == [("b",), ("a", "b"), ("no",)]
    assert items[1].media == (tmp_path / "x.png", tmp_path / "y.png")
    assert [item.choices for item in items] == [("a", "b"), ("yes", "no"), ("yes", "no")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--questions=nowhere.jsonl"], "no file of questions at nowhere.jsonl"),
        (["--questions=q.jsonl"], "q.jsonl:1: no file at absent.png"),
    ],
)
def test_what_is_wrong_is_an_error(tmp_path, tiny_model, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    line = {"question": "q", "answer": "a", "image": "absent.png"}
    (tmp_path / "q.jsonl").write_text(json.dumps(line))
    flags = [f"--model={tiny_model}", "--tokenizer=emoji", *arguments]
    assert evaluate_vqa.main(flags) == 1
    assert words in capsys.readouterr().err


def test_an_unknown_task_is_named(capsys):
    with pytest.raises(SystemExit):
        evaluate_vqa.main(["--model=m", "--questions=q.jsonl", "--task=guess"])
    assert "'guess'" in capsys.readouterr().err
