"""TUNA in lmms-eval, if that is installed: its evaluator runs our three tasks on a tiny model and local files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval", reason="lmms-eval requires an environment of its own")
TASKS = Path(__file__).parents[2] / "experiments/lmms_eval"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tuna_jax.emoji.evaluation import write_questions

    folder = tmp_path_factory.mktemp("lmms")
    write_questions.write(folder / "runs/questions", 6)
    return folder


def _evaluate(folder, model, tasks, *more):
    """Runs lmms-eval and returns its results by task and its samples by file."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    command = [
        *(sys.executable, "-m", "lmms_eval", "--model", "tuna"),
        *("--model_args", f"pretrained={model},tokenizer=emoji,template=chat"),
        *("--include_path", str(TASKS), "--tasks", tasks, "--batch_size", "4"),
        *("--output_path", "out", "--log_samples", *more),
    ]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (results,) = (folder / "out").rglob("*results.json")
    samples = {}
    for path in (folder / "out").rglob("*samples*.jsonl"):
        samples[path.stem] = [json.loads(line) for line in path.read_text().splitlines()]
    return json.loads(results.read_text())["results"], samples


def test_answers_about_images_and_clips_are_the_models(folder, tiny_model):
    import tuna_jax

    results, samples = _evaluate(folder, tiny_model, "emoji_generate,emoji_video")
    assert set(results) == {"emoji_generate", "emoji_video"}
    model = tuna_jax.Tuna.load(tiny_model, tokenizer="emoji")
    for task, file, key in (
        ("emoji_generate", "pictures.jsonl", "image"),
        ("emoji_video", "clips.jsonl", "video"),
    ):
        lines = (folder / "runs/questions" / file).read_text().splitlines()
        (rows,) = (rows for name, rows in samples.items() if task in name)
        assert len(rows) == 6
        for row in rows:
            line = json.loads(lines[row["doc_id"]])
            media = folder / "runs/questions" / line[key]
            answer = model.answer(media, line["question"], max_new_tokens=16, template="chat")
            assert row["filtered_resps"] == answer.split("\n")[0].strip()


def test_the_likeliest_choice_is_the_answer(folder, tiny_model):
    import numpy as np

    import tuna_jax
    from tuna_jax.inference.conversation import Conversation
    from tuna_jax.inference.scoring import likelihoods

    results, samples = _evaluate(folder, tiny_model, "emoji_choice", "--force_simple")
    model = tuna_jax.Tuna.load(tiny_model, tokenizer="emoji")
    right, unlikeliest = [], []
    for text in (folder / "runs/questions/pictures.jsonl").read_text().splitlines():
        line = json.loads(text)
        media = model.load_media([folder / "runs/questions" / line["image"]])
        conversations = [Conversation.of(media, line["question"])] * 4
        scores = likelihoods(model, conversations, line["choices"], ended=False, template="chat")
        for verdicts, choose in ((right, np.argmax), (unlikeliest, np.argmin)):
            verdicts.append(line["choices"][int(choose(scores.log_probability))] == line["answer"])
    assert right != unlikeliest, "these questions distinguish the two"
    (rows,) = samples.values()
    assert [bool(row["acc"]) for row in sorted(rows, key=lambda row: row["doc_id"])] == right
    assert results["emoji_choice"]["acc,none"] == sum(right) / len(right)
