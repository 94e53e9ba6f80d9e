"""Every command that computes gives on two processes what it gives on one, also after both were killed.

KILLS sets how often they are killed, each time at a random moment of all commands' work.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fixtures import launched
from tuna_jax.emoji.evaluation import write_questions

ROOT = Path(__file__).parents[1]
OLD = Path(__file__).parent / "fixtures/version_0_1"
KILLS = int(os.environ.get("KILLS", 1))
PATIENCE = 900  # Seconds; the machine may be shared.


def commands(folder, model, output):
    """[module, exit status, arguments] of each command, which write to `output`."""
    common = [f"--model={model}", "--tokenizer=emoji"]
    geneval = [f"--prompts={folder}", "--benchmark=geneval", "--size=32", "--steps=2"]
    return [
        ["generate", 0, [*common, "--prompt=a red apple", "--size=32", "--steps=2", "--seed=3",
                         f"--output={output}/apple.png"]],
        ["generate", 0, [*common, f"--prompts={folder}/prompts.jsonl", "--size=32", "--steps=2",
                         "--task=t2i", f"--output={output}/many"]],
        ["generate", 0, [*common, f"--image={folder}/media/picture_0001.png", "--size=32",
                         "--prompt=make it red", "--steps=2", "--task=edit",
                         f"--output={output}/edit.png"]],
        ["generate", 1, [*common, f"--image={folder}/nothing.png", "--question=what is this?"]],
        ["evaluate_vqa", 0, [*common, f"--questions={folder}/pictures.jsonl",
                             f"--output={output}/answers.jsonl"]],
        ["evaluate_vqa", 0, [*common, f"--questions={folder}/pictures.jsonl",
                             "--task=log_likelihood", f"--output={output}/likelihoods.jsonl"]],
        ["evaluate_images", 0, ["features", *common, "--size=32", f"--images={folder}/media",
                                f"--output={output}/features.npy"]],
        ["evaluate_benchmarks", 0, [*common, *geneval, f"--output={output}/geneval"]],
        ["encode_latents", 0, [f"--manifest={folder}/manifest.jsonl", "--sizes=64x64",
                               "--smallest=16", "--shard_rows=2", "--batch_size=2",
                               f"--output={output}/latents"]],
        ["evaluate", 0, ["--workdir=run", f"--output={output}/evaluation", "--batches=2"]],
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model):
    """Questions, prompts and a manifest, and what the commands made of them in `one/` and `two/`."""
    folder = tmp_path_factory.mktemp("commands")
    write_questions.write(folder, 4)
    (folder / "geneval/evaluation_metadata.jsonl").parent.mkdir()
    lines = [{"tag": "colors", "include": [], "prompt": f"a {c} dog"} for c in ("red", "blue")]
    (folder / "geneval/evaluation_metadata.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    prompts = [{"prompt": f"a {colour} apple"} for colour in ("red", "green", "blue")]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    examples = [{"image": f"media/picture_000{i}.png", "caption": "x"} for i in range(1, 4)]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(e) + "\n" for e in examples))
    # A multitask run, which names its manifest relative to where commands are started.
    shutil.copytree(OLD / "files", folder / "files")
    (folder / "run").mkdir()
    shutil.copy(OLD / "multitask_run_finished.safetensors", folder / "run" / "model.safetensors")
    local = [str(ROOT / "launchers/local.py"), "--processes=2", "--devices=2", "--"]
    files = {}
    for name in ("one", "two"):
        (folder / name).mkdir()
        files[name] = folder / f"{name}.json"
        files[name].write_text(json.dumps(commands(folder, tiny_model, folder / name)))
    begun = time.monotonic()
    _finish(_start(folder, [], files["one"]), folder / "one.log")
    seconds = time.monotonic() - begun
    for _ in range(KILLS):
        run = _start(folder, [*local, sys.executable], files["two"])
        try:
            run.communicate(timeout=seconds * random.uniform(0.1, 1.5))
        except subprocess.TimeoutExpired:
            launched.kill(run)
    _finish(_start(folder, [*local, sys.executable], files["two"]), folder / "two.log")
    return folder


def _start(folder, launcher, file):
    command = [sys.executable, *launcher, str(ROOT / "tests/commands_on_two_processes.py"), file]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(process, log):
    output = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, output[-5000:]
    log.write_text(output)


def _names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_same_files_are_written_once(folder):
    assert _names(folder / "one") == _names(folder / "two")
    # Only process 0 speaks for the command.
    log = (folder / "two.log").read_text()
    assert log.count("nothing.png") == 1 and "[0] error" in log


def test_images_are_equal_up_to_rounding(folder):
    images = [name for name in _names(folder / "one") if name.endswith(".png")]
    assert len(images) >= 1 + 3 + 1 + 2
    for name in images:
        one, two = (np.asarray(Image.open(folder / run / name), int) for run in ("one", "two"))
        assert np.abs(one - two).max() <= 1, name


def test_answers_and_likelihoods_are_equal(folder):
    one, two = (
        (folder / run / "answers.jsonl").read_text().replace(f"/{run}/", "/")
        for run in ("one", "two")
    )
    assert one == two and len(one.splitlines()) == 4
    rows = [
        [json.loads(line) for line in (folder / run / "likelihoods.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    ]
    for one, two in zip(*rows, strict=True):
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert two[key] == (
                pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            )


def test_features_are_equal(folder):
    one, two = (np.load(folder / run / "features.npy") for run in ("one", "two"))
    assert len(one) == 4
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_the_losses_of_a_run_are_equal(folder):
    one, two = (
        json.loads((folder / run / "evaluation/summary.json").read_text()) for run in ("one", "two")
    )
    for name, values in one["losses"].items():
        for loss in values.keys() - {"examples"}:
            assert two["losses"][name][loss] == pytest.approx(values[loss], rel=1e-5)
        assert two["losses"][name]["examples"] == values["examples"] == 4
