"""Files of requests, and the lines that are rejected."""

import pytest

from tuna_jax.inference.requests import Request, read_requests


def _file(folder, name, content):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_text_has_a_request_per_line(tmp_path):
    path = _file(tmp_path, "a.txt", "a dog\n\n  {a cat \n")
    assert read_requests(path, "t2i") == [Request(text="a dog"), Request(text="{a cat")]


def test_json_lines_have_seed_and_negative_prompt(tmp_path):
    lines = '{"prompt": "a dog", "seed": 7, "negative": "a cat"}\n\n{"prompt": "a cat"}\n'
    assert read_requests(_file(tmp_path, "a.jsonl", lines), "t2v") == [
        Request(text="a dog", seed=7, negative="a cat"),
        Request(text="a cat"),
    ]


def test_media_are_relative_to_the_file(tmp_path):
    lines = '{"question": "?", "image": ["a.png", "/b.png"]}\n{"question": "?", "video": "c.mp4"}'
    first, second = read_requests(_file(tmp_path, "a.jsonl", lines), "understand")
    assert first.media == (str(tmp_path / "a.png"), "/b.png")
    assert second.media == (str(tmp_path / "c.mp4"),)
    assert (first.kind, second.kind) == ("image", "video")


def test_a_chat_may_be_messages(tmp_path):
    line = '{"messages": [{"role": "user", "content": "hello"}]}'
    (request,) = read_requests(_file(tmp_path, "a.jsonl", line), "chat")
    assert request.messages == ({"role": "user", "content": "hello"},)


@pytest.mark.parametrize(
    ("task", "line", "match"),
    [
        ("t2i", "{", "JSON"),
        ("t2i", "[1]", "list"),
        ("t2i", '{"prompt": "a", "sed": 3}', "'sed'.* seed"),
        ("t2i", '{"prompt": "a", "image": "a.png"}', "'image'"),
        ("t2i", '{"seed": 3}', "'prompt'"),
        ("t2i", '{"prompt": 3}', "'prompt' is 3"),
        ("t2i", '{"prompt": "a", "seed": true}', "'seed' is True"),
        ("edit", '{"prompt": "a", "image": [3]}', "'image' is \\[3\\]"),
        ("chat", "{}", "'question' or 'messages'"),
        ("chat", '{"messages": ["a"]}', "'messages'"),
        ("chat", '{"messages": []}', "'messages'"),
        (
            "chat",
            '{"messages": [{"role": "user", "content": "a"}], "question": "b"}',
            "'question' or 'messages'",
        ),
    ],
)
def test_an_invalid_line_is_named_by_its_number(tmp_path, task, line, match):
    valid = '{"question": "a"}' if task == "chat" else '{"prompt": "a"}'
    path = _file(tmp_path, "a.jsonl", f"{valid}\n\n{line}\n")
    with pytest.raises(ValueError, match=rf"a\.jsonl:3: .*{match}"):
        read_requests(path, task)


def test_an_invalid_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        read_requests(tmp_path / "none", "t2i")
    with pytest.raises(ValueError, match=r"a\.txt"):
        read_requests(_file(tmp_path, "a.txt", " \n\n"), "t2i")
    with pytest.raises(ValueError, match=r"b\.txt:2: .*UTF-8"):
        read_requests(_file(tmp_path, "b.txt", b"a dog\n\xff\xfe\n"), "t2i")
