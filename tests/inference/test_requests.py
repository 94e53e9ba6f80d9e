"""Files of requests, and what is wrong with a line."""

import pytest

from tuna_jax.inference.requests import Request, read_requests


def _file(folder, name, content):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_text_has_a_request_a_line(tmp_path):
    path = _file(tmp_path, "a.txt", "a dog\n\n  {a cat \n")
    assert read_requests(path, "t2i") == [Request(text="a dog"), Request(text="{a cat")]


def test_json_lines_say_more(tmp_path):
    lines = '{"prompt": "a dog", "seed": 7, "negative": "a cat"}\n\n{"prompt": "a cat"}\n'
    assert read_requests(_file(tmp_path, "a.jsonl", lines), "t2v") == [
        Request(text="a dog", seed=7, negative="a cat"),
        Request(text="a cat"),
    ]


def test_pictures_lie_beside_the_file(tmp_path):
    lines = '{"question": "?", "image": ["a.png", "/b.png"]}\n{"question": "?", "video": "c.mp4"}'
    first, second = read_requests(_file(tmp_path, "a.jsonl", lines), "understand")
    assert first.shown == (str(tmp_path / "a.png"), "/b.png")
    assert second.shown == (str(tmp_path / "c.mp4"),)


def test_a_chat_may_be_messages(tmp_path):
    line = '{"messages": [{"role": "user", "content": "hello"}]}'
    (found,) = read_requests(_file(tmp_path, "a.jsonl", line), "chat")
    assert found.messages == ({"role": "user", "content": "hello"},)


@pytest.mark.parametrize(
    ("task", "line", "words"),
    [
        ("t2i", "{", "not JSON"),
        ("t2i", "[1]", "a list where an object is wanted"),
        ("t2i", '{"prompt": "a", "sed": 3}', "unknown key 'sed'; t2i knows prompt, negative, seed"),
        ("t2i", '{"prompt": "a", "image": "a.png"}', "unknown key 'image'"),
        ("t2i", '{"seed": 3}', "give 'prompt'"),
        ("t2i", '{"prompt": 3}', "'prompt' is 3; it must be a string"),
        ("t2i", '{"prompt": "a", "seed": true}', "'seed' is True; it must be a whole number"),
        ("edit", '{"prompt": "a", "image": [3]}', "'image' is \\[3\\]"),
        ("chat", "{}", "give 'question' or 'messages'"),
        ("chat", '{"messages": ["a"]}', "'messages' must be a list of objects"),
        ("chat", '{"messages": [{"role": "user", "content": "a"}], "question": "b"}', "not both"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(tmp_path, task, line, words):
    good = '{"question": "a"}' if task == "chat" else '{"prompt": "a"}'
    path = _file(tmp_path, "a.jsonl", f"{good}\n\n{line}\n")
    with pytest.raises(ValueError, match=rf"a\.jsonl:3: .*{words}"):
        read_requests(path, task)


def test_other_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file of requests at .*none"):
        read_requests(tmp_path / "none", "t2i")
    with pytest.raises(ValueError, match="has no line with a request"):
        read_requests(_file(tmp_path, "a.txt", " \n\n"), "t2i")
    with pytest.raises(ValueError, match=r"b\.txt:2: not UTF-8"):
        read_requests(_file(tmp_path, "b.txt", b"a dog\n\xff\xfe\n"), "t2i")
