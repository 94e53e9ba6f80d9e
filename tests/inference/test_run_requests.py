"""Files of requests' results: answers, conversations, and conversations of earlier versions."""

import json

import pytest

from tuna_jax.inference import run_requests
from tuna_jax.inference.requests import Request

pytestmark = pytest.mark.usefixtures("any_words")

SHORT = {"max_new_tokens": 4, "temperature": 1.0}


def test_written_parts_are_the_answers_of_the_batch(tuna, tmp_path):
    requests = [Request(text="what is this?"), Request(text="hello", seed=8)]
    answers, parts = [], []
    for folder, output in (("a", {"log": answers.append}), ("b", {"write": parts.append})):
        run_requests.write_answers(tuna, requests, tmp_path / folder, seed=3, **output, **SHORT)
    first, second = (tmp_path / folder / "answers.jsonl" for folder in ("a", "b"))
    assert first.read_text() == second.read_text()
    lines = [json.loads(line) for line in first.read_text().splitlines()]
    assert [line["answer"] for line in lines] == answers
    assert "".join(parts) == "".join(f"{answer}\n" for answer in answers)
    assert lines[0]["messages"] == [{"role": "user", "content": "what is this?"}]


def test_a_conversation_continues_from_its_file(tuna, tmp_path):
    turns = [Request(text="hello"), Request(text="what is a dog?")]
    whole = run_requests.converse(tuna, turns, tmp_path / "whole", log=lambda _: None, **SHORT)
    path = run_requests.converse(tuna, turns[:1], tmp_path / "a", log=lambda _: None, **SHORT)
    history = run_requests.read_history(path)
    assert len(history.messages) == 2 and history.media == ()
    path = run_requests.converse(
        tuna, turns[1:], tmp_path / "b", history=history, log=lambda _: None, **SHORT
    )
    assert path.read_text() == whole.read_text()


def test_media_of_a_history_and_of_a_request_are_rejected(tuna, tmp_path):
    history = Request(media=("a.png",), messages=({"role": "user", "content": "<image>"},))
    with pytest.raises(ValueError, match="media"):
        run_requests.converse(tuna, [Request(media=("b.png",))], tmp_path, history=history)


def test_an_edit_requires_one_image(tuna, tmp_path):
    with pytest.raises(ValueError, match="--image=FILE"):
        run_requests.generate_images(tuna, [Request(text="add a dog")], tmp_path, edit=True)


@pytest.mark.parametrize("key", ["media", "shown"])
def test_histories_of_earlier_versions_are_read(tmp_path, key):
    messages = [{"role": "user", "content": "<image>\nwhat?"}]
    (tmp_path / "a.json").write_text(json.dumps({key: ["a.png"], "messages": messages}))
    history = run_requests.read_history(tmp_path / "a.json")
    assert history == Request(media=("a.png",), messages=tuple(messages))


def test_a_history_knows_what_its_media_are_read_as(tmp_path):
    values = {"media": ["a.gif"], "kind": "image", "messages": []}
    (tmp_path / "a.json").write_text(json.dumps(values))
    assert run_requests.read_history(tmp_path / "a.json").kind == "image"


def test_a_file_that_is_not_a_conversation_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        run_requests.read_history(tmp_path / "none.json")
    for content in ("{", "[]", '{"media": []}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ValueError, match=r"bad\.json"):
            run_requests.read_history(tmp_path / "bad.json")
