"""Prompts, questions, conversations and logs: every line is used, or the file and the line are named."""

import functools
import json
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.properties.test_manifests import texts, values
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.evaluation.vqa.datasets import read_lines
from tuna_jax.inference.requests import TASKS, read_requests
from tuna_jax.inference.run_requests import read_history
from tuna_jax.sequence import IGNORE, build
from tuna_jax.training import metrics
from tuna_jax.utils.text_files import json_line, read_log

TOKENIZER = Tokenizer()
# Text that UTF-8 can write, without the two characters that end lines.
written = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=20)
requests = (
    st.fixed_dictionaries(
        {},
        optional={
            "prompt": texts | values,
            "question": texts | values,
            "image": texts | st.lists(texts, max_size=2) | values,
            "video": texts | values,
            "seed": st.integers() | values,
            "negative": texts | values,
            "messages": st.lists(
                st.fixed_dictionaries({"role": texts, "content": texts}), max_size=3
            )
            | values,
        },
    )
    | values
)
questions = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("image", "video", "question", "answer", "choices", "kind"), texts | values
    ),
)


@given(
    st.lists(written, max_size=8),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_every_line_of_a_text_file_is_a_prompt(prompts, end, encoding) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.txt"
        # The first line keeps the encoding from being a guess.
        path.write_bytes(end.join(["a red apple", *prompts]).encode(encoding))
        expected = [text.removeprefix("\ufeff").strip() for text in prompts]
        read = [request.text for request in read_requests(path, "t2i")]
        assert read == ["a red apple", *[text for text in expected if text]]


@given(st.lists(requests, min_size=1, max_size=4), st.sampled_from(TASKS))
def test_json_prompts_are_used_or_named(rows, task) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        path.write_text("".join(map(json_line, rows)), encoding="utf-8")
        try:
            read = read_requests(path, task)
        except ValueError as error:
            assert str(path) in str(error)
        else:
            array = len(rows) == 1 and isinstance(rows[0], list)
            assert len(read) == len(rows[0] if array else rows)


@given(
    st.binary(max_size=120),
    st.sampled_from(["prompts.txt", "prompts.jsonl"]),
    st.sampled_from(TASKS),
)
def test_any_bytes_are_prompts_or_refused(content, name, task) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        for read in (functools.partial(read_requests, task=task), read_lines, read_history):
            try:
                read(path)
            except ValueError as error:
                assert str(path) in str(error)


@given(st.lists(questions, min_size=1, max_size=3))
def test_questions_are_used_or_named(rows) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "questions.jsonl"
        path.write_text("".join(map(json_line, rows)), encoding="utf-8")
        try:
            assert len(read_lines(path)) == len(rows)
        except ValueError as error:
            assert str(path) in str(error)


@given(
    values
    | st.fixed_dictionaries({"media": values, "messages": st.lists(requests | values, max_size=3)})
)
def test_a_conversation_is_read_or_named(value) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "conversation.json"
        path.write_text(json_line(value), encoding="utf-8")
        try:
            history = read_history(path)
        except ValueError as error:
            assert str(path) in str(error)
        else:
            assert all(isinstance(m["content"], (str, list)) for m in history.messages)


@given(
    st.lists(st.tuples(written.filter(str.strip), st.booleans()), min_size=1, max_size=4),
    st.none() | written.filter(str.strip),
)
def test_training_learns_what_inference_will_say_and_nothing_else(turns, system) -> None:
    """The tokens do not depend on losses, and those before an answer are those that inference continues."""
    turns = [(text.replace("<image>", "image"), learn) for text, learn in turns]
    messages = [] if system is None else [{"role": "system", "content": system}]
    for text, learn in turns:
        messages += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": text, "learn": learn},
        ]
    special = TOKENIZER.special
    built = build(TOKENIZER.chat(messages), special)
    plain = [{key: m[key] for key in ("role", "content")} for m in messages]
    every = build(TOKENIZER.chat(plain), special)
    assert built.tokens.tolist() == every.tokens.tolist()
    answers = [[*TOKENIZER.encode(text), special.eos] for text, _ in turns]
    learned = [answer for answer, (_, learn) in zip(answers, turns, strict=True) if learn]
    assert built.labels[built.labels != IGNORE].tolist() == sum(learned, [])
    prompt = build(TOKENIZER.chat(plain[:-1], answer=True), special)
    assert every.tokens[: len(prompt.tokens)].tolist() == prompt.tokens.tolist()


@given(st.lists(st.dictionaries(texts, values, max_size=3), max_size=5), st.integers(0, 40))
def test_a_log_gives_every_whole_line(rows, cut) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        whole = "".join(map(json_line, rows)).encode()
        torn = json_line({"step": 1, "text": "\u2028é" * 5}).encode()[:cut]
        path.write_bytes(whole + torn)
        read = metrics.read(path)
        assert json.dumps(read[: len(rows)]) == json.dumps([json.loads(json_line(r)) for r in rows])
        assert len(read) <= len(rows) + 1 and read == metrics.read(path)
        assert json.dumps(read_log(path)) == json.dumps(read)
