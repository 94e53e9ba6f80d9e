"""The command generates a folder, resumes after SIGKILL, checks the folder and reports what is wrong."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tuna_jax import evaluate_benchmarks

LINES = [
    {"tag": "colors", "include": [], "prompt": f"a {colour} dog"} for colour in ("red", "blue")
]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "geneval/evaluation_metadata.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return tmp_path


def _arguments(prompts, *more):
    return [
        "--benchmark=geneval",
        f"--prompts={prompts}",
        f"--output={prompts}/out/geneval",
        *more,
    ]


def _generating(prompts, model):
    flags = (f"--model={model}", "--tokenizer=emoji", "--size=32", "--steps=2", "--batch_size=1")
    return _arguments(prompts, *flags)


def test_a_killed_run_resumes_and_its_folder_is_checked(prompts, tiny_model, capsys):
    command = [
        sys.executable,
        "-m",
        "tuna_jax.evaluate_benchmarks",
        *_generating(prompts, tiny_model),
    ]
    samples = prompts / "out/geneval"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while not list(samples.rglob("*.png")) and time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = {path: path.read_bytes() for path in samples.rglob("*.png")}
    assert first
    assert evaluate_benchmarks.main(_generating(prompts, tiny_model)) == 0
    printed = capsys.readouterr().out
    assert f"{8 - len(first)} files generated, {len(first)} kept" in printed
    assert f"evaluate_images.py {samples} --outfile" in printed
    assert {path: path.read_bytes() for path in first} == first
    assert evaluate_benchmarks.main(_arguments(prompts, "--check", "--size=32")) == 0
    assert "8 files of 2 prompts" in capsys.readouterr().out
    (samples / "00001/samples/0003.png").write_bytes(b"")
    assert evaluate_benchmarks.main(_arguments(prompts, "--check", "--size=32")) == 1
    assert f"{samples}/00001/samples/0003.png: cannot be read" in capsys.readouterr().out


def test_a_prompt_file_of_another_length_is_reported(prompts, capsys):
    (prompts / "out/geneval").mkdir(parents=True)
    assert evaluate_benchmarks.main(_arguments(prompts, "--check")) == 1
    assert "note: 2 prompts; the published geneval has 553" in capsys.readouterr().err


def test_a_wrong_prompt_file_is_an_error_before_the_model_is_read(prompts, capsys):
    (prompts / "geneval/evaluation_metadata.jsonl").write_text('{"prompt": 3}\n')
    assert evaluate_benchmarks.main(_arguments(prompts, "--model=nowhere")) == 1
    assert "evaluation_metadata.jsonl:1: 'prompt' must be a text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "give --model=PATH"),
        (["--check", "--model=m"], "drop --model"),
        (["--check", "--frames=5"], "--frames has no effect with --benchmark=geneval"),
        (["--model=m", "--shard=2/2"], "'2/2'"),
        (["--model=m", "--size=a"], "'a'"),
    ],
)
def test_wrong_flags_are_named(prompts, capsys, more, words):
    with pytest.raises(SystemExit):
        evaluate_benchmarks.main(_arguments(prompts, *more))
    assert words in capsys.readouterr().err
