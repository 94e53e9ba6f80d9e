"""What people's text files and command lines hold, at the doors of the commands that read them."""

import base64
import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tuna_jax import generate, train
from tuna_jax.cli import config_flags, parsing
from tuna_jax.evaluation import features
from tuna_jax.evaluation.benchmarks import registry
from tuna_jax.evaluation.vqa.datasets import read_lines
from tuna_jax.inference.media_inputs import ImageFile, as_clip
from tuna_jax.inference.requests import read_requests
from tuna_jax.inference.run_requests import read_history
from tuna_jax.sweeps import results
from tuna_jax.sweeps.cell_store import Cell
from tuna_jax.sweeps.task import Outcome

ODD = "a\u2028red\u0085 apple\x1c"
BOM = b"\xef\xbb\xbf"
GENEVAL = {"tag": "single_object", "include": [{"class": "apple"}], "prompt": ODD}


def text(value) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_prompts_in_other_encodings_are_the_same_prompts(tmp_path, encoding) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(f"a red apple\r\n{ODD}x\r\n".encode(encoding))
    assert [r.text for r in read_requests(path, "t2i")] == ["a red apple", f"{ODD}x"]
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(
        f'{{"prompt": "{ODD}", "negative": null}}\n'.replace("\x1c", "").encode(encoding)
    )
    assert read_requests(path, "t2i")[0].text == ODD.replace("\x1c", "")


def test_a_conversation_and_questions_with_a_mark_of_byte_order(tmp_path) -> None:
    messages = [{"role": "user", "content": ODD}]
    path = tmp_path / "conversation.json"
    path.write_bytes(BOM + text({"media": [], "messages": messages}))
    assert list(read_history(path).messages) == messages
    path = tmp_path / "questions.jsonl"
    row = {"image": None, "video": None, "question": ODD, "answer": "yes", "choices": None}
    path.write_bytes(BOM + text([{**row, "choices": ["yes"]}]))
    assert read_lines(path)[0].question == ODD


def test_prompts_of_benchmarks(tmp_path) -> None:
    rows = BOM + text(GENEVAL) + b"\n\n" + text({**GENEVAL, "prompt": "b"})
    (tmp_path / "evaluation_metadata.jsonl").write_bytes(rows)
    geneval = registry.read("geneval", tmp_path)
    assert geneval.prompts == 2 and geneval.pieces[0].prompt == ODD
    assert json.loads(geneval.companions[0].text) == GENEVAL
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "a.txt").write_bytes(BOM + b"a red apple")
    (tmp_path / "prompts" / "._a.txt").write_bytes(b"\0\5\26\7")
    assert [p.prompt for p in registry.read("dpg_bench", tmp_path).pieces] == ["a red apple"]
    edit = {"1": {"id": "a.png", "prompt": ODD, "edit_type": "add"}}
    (tmp_path / "basic_edit.json").write_bytes(BOM + text(edit))
    (tmp_path / "a.png").touch()
    assert registry.read("imgedit", tmp_path).pieces[0].prompt == ODD
    clip = {"prompt_en": "a cat", "dimension": ["color"]}
    (tmp_path / "VBench_full_info.json").write_bytes(BOM + text([clip]))
    assert registry.read("vbench", tmp_path).prompts == 1
    table = io.StringIO()
    csv.writer(table).writerows([["category", "id", "prompt_en"], ["Portrait", "000", ODD]])
    (tmp_path / "OneIG-Bench.csv").write_bytes(table.getvalue().encode("utf-16"))
    assert registry.read("oneig", tmp_path).pieces[0].prompt == ODD


@pytest.mark.parametrize(
    ("benchmark", "name", "content", "words"),
    [
        ("geneval", "evaluation_metadata.jsonl", text(GENEVAL) + b'\n{"prompt"', "jsonl:2: not JSON"),
        ("geneval", "evaluation_metadata.jsonl", b'{"prompt": "\\ud83d", "tag": "x", "include": []}', "jsonl:1"),
        ("imgedit", "basic_edit.json", b"[" * 99_999, "basic_edit.json: not JSON"),
        ("vbench", "VBench_full_info.json", b'[{"prompt_en": "\\udce9", "dimension": []}]', "entry 0"),
        ("oneig", "OneIG-Bench.csv", b"category,id,prompt_en\nPortrait,000,caf\xe9\n", "csv:2: not UTF-8"),
        ("oneig", "OneIG-Bench.csv", b"category,id,prompt_en\nPortrait,000," + b"x" * 200_000, "csv:2: not CSV"),
    ],
)  # fmt: skip
def test_prompts_of_benchmarks_that_cannot_be_read_are_named(
    tmp_path, benchmark, name, content, words
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        registry.read(benchmark, tmp_path)


def test_hidden_files_are_no_pictures(tmp_path) -> None:
    for name in ("b.png", "sub/a.png", "._b.png", ".trash/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    paths = features.pictures_in(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == ["b.png", "sub/a.png"]


def test_a_data_uri_is_read_where_a_file_may_be_named(tmp_path) -> None:
    Image.new("RGB", (32, 32), (10, 200, 30)).save(tmp_path / "a.png")
    uri = f"data:image/png;base64,{base64.b64encode((tmp_path / 'a.png').read_bytes()).decode()}"
    expected = as_clip(str(tmp_path / "a.png"), (32, 32))
    (tmp_path / "q.jsonl").write_bytes(text({"question": "?", "answer": "x", "image": uri}))
    for item in (
        uri,
        ImageFile(uri),
        *read_lines(tmp_path / "q.jsonl")[0].media,
        *read_requests_of(tmp_path, {"question": "?", "image": uri}),
    ):
        np.testing.assert_array_equal(as_clip(item, (32, 32)), expected)
    with pytest.raises(ValueError, match="data URI"):
        as_clip("data:image/png;base64,%%%", (32, 32))


def read_requests_of(folder, row):
    (folder / "r.jsonl").write_bytes(text(row))
    return read_requests(folder / "r.jsonl", "understand")[0].media


def test_items_of_a_sweep_are_read_as_they_were_written(tmp_path) -> None:
    """U+2028 within a reply once ended the line: the item was run again, for ever."""
    cell = Cell(tmp_path / "cell")
    cell.begin({})
    replies = [ODD, "caf\udce9", "\x0b\x0c"]
    cell.append([0, 1, 2], Outcome({"right": [1.0, 0.0, 1.0]}, replies, texts=replies), 0)
    assert [record["text"] for record in cell.records().values()] == replies
    cell.begin({})
    assert len(cell.records()) == 3
    row = {"run": ODD, "step": 1, "task": "t", "settings": {}}
    results.write(tmp_path / "results.jsonl", [row])
    assert results.read(tmp_path / "results.jsonl") == [row]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", b"a dog\ncaf\xe9\n", "p.txt:2: not UTF-8"),
        ("p.jsonl", b'{"prompt": "a"}\n\n{"prompt": "\\ud83d"}\n', "p.jsonl:3: "),
        ("p.jsonl", b"[" * 99_999, "p.jsonl:1: not JSON"),
    ],
)
def test_a_prompt_that_is_not_text_is_named_with_file_and_line(
    tmp_path, capsys, name, content, words
) -> None:
    (tmp_path / name).write_bytes(content)
    assert generate.main(["--model=none", f"--prompts={tmp_path / name}"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and words in printed and printed.count("\n") == 1


@pytest.mark.parametrize("flag", ["--prompt", "--question", "--negative"])
def test_an_argument_that_is_not_utf8_is_named(capsys, flag) -> None:
    arguments = ["--model=none", f"{flag}=caf\udce9"]
    if flag == "--negative":
        arguments.append("--prompt=a dog")
    with pytest.raises(SystemExit, match="2"):
        generate.main(arguments)
    assert rf"{flag}: 'caf\udce9'" in capsys.readouterr().err


def test_messages_about_names_that_are_not_utf8_can_be_printed() -> None:
    code = "from tuna_jax.cli import parsing; parsing.run(lambda: print('caf\\udce9 \\U0001f34e'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
        check=False,
    )
    assert done.returncode == 0 and done.stdout == b"caf\\udce9 \\U0001f34e\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("12 GB"), "out of memory: 12 GB"),
        (OSError(28, "No space left on device", "a.npz"), "No space left on device: 'a.npz'"),
        (RuntimeError("RESOURCE_EXHAUSTED: 3 GB"), "out of memory: RESOURCE_EXHAUSTED"),
    ],
)
def test_an_ill_machine_is_one_line(capsys, error, words) -> None:
    def work() -> None:
        raise error

    assert parsing.run(work) == 1
    assert words in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="a mistake"):
        parsing.run(lambda: (_ for _ in ()).throw(RuntimeError("a mistake")))


@pytest.mark.parametrize(
    ("source", "argument", "override", "words"),
    [
        ("def get_config():\n    return C({'a': 1})\n", "", "--config.a.b=2", "config.a.b"),
        ("def get_config():\n    return C({'a': 1})\n", ":x", "--config.aa=2", "get_config()"),
        (
            "def get_config(size):\n    return C({'a': 1})\n",
            "",
            "--config.aa=2",
            "get_config(size)",
        ),
        ("a = 1\n", "", "--config.a=2", "no function get_config()"),
    ],
)
def test_an_experiment_file_that_does_not_fit(tmp_path, source, argument, override, words) -> None:
    path = tmp_path / "experiment.py"
    path.write_text(f"from ml_collections import ConfigDict as C\n{source}")
    with pytest.raises(ValueError) as raised:
        config_flags.read(f"{path}{argument}", [override])
    assert words in str(raised.value)


def test_keys_that_a_file_does_not_set_can_be_set(tmp_path) -> None:
    path = tmp_path / "experiment.py"
    path.write_text(
        "from ml_collections import ConfigDict as C\ndef get_config():\n    return C({'a': {'b': 1}})\n"
    )
    added = ["c=2", "d.e=(1, 2)", "d.f=text", "a.g=true", "a.b=5"]
    values = config_flags.read(str(path), [f"--config.{text}" for text in added])
    assert values == {"a": {"b": 5, "g": True}, "c": 2, "d": {"e": (1, 2), "f": "text"}}
    with pytest.raises(ValueError, match="did you mean 'a'"):
        config_flags.read(str(path), ["--sweep.aa=2"], "sweep")


EXPERIMENT = """
from tuna_jax.trainers.config import experiment
from tuna_jax.trainers.stream_config import stream

def get_config():
    config = experiment()
    config.model = {"preset": "emoji"}
    config.data.vocabulary = "emoji"
    config.steps, config.optimizer.warmup = 3, 0
    config.data.streams = {"draw": stream("t2i", MANIFEST, 1.0, sizes=("32x32",), lengths=(32,))}
    return config
"""


def test_too_many_invalid_examples_are_a_message_and_not_a_traceback(tmp_path, capsys) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"image": "none.png", "caption": "a"}\n' * 3)
    (tmp_path / "e.py").write_text(EXPERIMENT.replace("MANIFEST", repr(str(manifest))))
    with pytest.raises(SystemExit) as exit_:
        train.main([f"--config={tmp_path / 'e.py'}", f"--workdir={tmp_path / 'run'}"])
    assert exit_.value.code == 2, "the same command would fail again"
    error = capsys.readouterr().err
    assert "error: 3 of 3 " in error and "missing_file" in error and "Traceback" not in error
    assert len((tmp_path / "run" / "invalid_examples.jsonl").read_text().split("\n")) == 4
