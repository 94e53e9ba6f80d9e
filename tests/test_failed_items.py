"""One bad file is one failed item, named and counted with exit status 1; the others have their results."""

import json

import numpy as np
import pytest
from PIL import Image

from tuna_jax import evaluate_images, evaluate_vqa, generate
from tuna_jax.evaluation.benchmarks.generate import Plan, fill
from tuna_jax.evaluation.benchmarks.spec import Benchmark, Piece
from tuna_jax.inference.not_finite import NotFiniteError
from tuna_jax.sweeps import cell_store, registry, results
from tuna_jax.sweeps.cell_store import Cell
from tuna_jax.sweeps.task import Outcome, Task

pytestmark = pytest.mark.usefixtures("any_words")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two pictures, one that is cut, and one that is missing."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    for name, pixels in zip(("a", "b", "cut"), random, strict=True):
        Image.fromarray(pixels).save(tmp_path / f"{name}.jpg", quality=95)
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    return tmp_path


NAMES = ("a", "cut", "none", "b")


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_questions_of_generate(folder, tiny_model, capsys):
    write_lines(folder / "q.jsonl", [{"question": "?", "image": f"{n}.jpg"} for n in NAMES])
    flags = [f"--model={tiny_model}", "--tokenizer=emoji", "--prompts=q.jsonl"]
    assert generate.main([*flags, "--task=understand", "--max_new_tokens=2"]) == 1
    error = capsys.readouterr().err
    assert "error: q.jsonl:2: " in error and "cut.jpg" in error
    assert "error: q.jsonl:3: no file at none.jpg" in error and "2 of 4 requests failed" in error
    lines = read_lines(folder / "answers/answers.jsonl")
    assert ["answer" in line for line in lines] == [True, False, False, True]
    assert lines[2]["error"].startswith("q.jsonl:3: no file")


def test_edits_of_generate(folder, tiny_model, capsys):
    write_lines(folder / "e.jsonl", [{"prompt": "a dog", "image": f"{n}.jpg"} for n in NAMES])
    flags = [f"--model={tiny_model}", "--tokenizer=emoji", "--prompts=e.jsonl", "--task=edit"]
    quick = ["--steps=1", "--size=32", "--guidance=1"]
    assert generate.main([*flags, *quick]) == 1
    error = capsys.readouterr().err
    assert "error: e.jsonl:2: " in error and "2 of 4 requests failed" in error
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == [
        *("edit_0.png", "edit_3.png", "sheet.png")
    ]
    # A result does not depend on the requests that failed.
    assert (
        generate.main([*flags[:2], "--task=edit", "--image=b.jpg", "--prompt=a dog", *quick]) == 0
    )


@pytest.mark.parametrize("task", ["exact_match", "multiple_choice", "log_likelihood"])
def test_evaluate_vqa(folder, tiny_model, capsys, task):
    row = {"question": "?", "answer": "x", "choices": ["x", "y"]}
    write_lines(folder / "q.jsonl", [{**row, "image": f"{n}.jpg"} for n in NAMES])
    flags = [f"--model={tiny_model}", "--tokenizer=emoji", "--questions=q.jsonl"]
    assert evaluate_vqa.main([*flags, f"--task={task}", "--max_new_tokens=2"]) == 1
    captured = capsys.readouterr()
    assert "failed: q.jsonl:2: " in captured.err and "2 of 4 questions failed" in captured.err
    values = json.loads(captured.out.splitlines()[-1])
    assert values["failed"] == 2 and values.get("count", 2) == 2
    lines = read_lines(folder / "answers.jsonl")
    assert ["error" in line for line in lines] == [False, True, True, False]


def test_evaluate_images(folder, tiny_model, capsys):
    (folder / "mine.py").write_text(
        "import numpy as np\n"
        "def f(x):\n"
        "    return np.array([[np.nan if np.asarray(i).mean() > 200 else 1.0, 2.0] for i in x])\n"
    )
    flags = ["reconstruction", f"--model={tiny_model}", "--tokenizer=emoji", "--size=32"]
    assert evaluate_images.main([*flags, "--images=."]) == 1
    captured = capsys.readouterr()
    assert "failed: cut.jpg" in captured.err and "1 images failed" in captured.err
    values = json.loads(captured.out.splitlines()[-1])
    assert (values["pictures"], values["failed"]) == (2, 1)
    Image.new("RGB", (32, 32), "white").save(folder / "white.png")
    features = ["features", "--images=.", "--extractor=mine.py:f", "--output=f.safetensors"]
    assert evaluate_images.main(features) == 1
    captured = capsys.readouterr()
    assert "white.png: its features are not finite" in captured.err
    assert json.loads(captured.out.splitlines()[-1])["rows"] == 2


def test_files_of_a_benchmark(folder):
    pieces = [
        Piece(f"{i}.png", f"p{i}", i, source=folder / f"{name}.jpg")
        for i, name in enumerate([*NAMES, "a"])
    ]
    benchmark = Benchmark("b", tuple(pieces), 5, 5, "")

    def draw(prompts, seeds, sources, size):
        made = np.stack(sources)
        if "p4" in prompts:
            raise NotFiniteError("nan", [prompts.index("p4")], made)
        return made

    failures = {}
    plan = Plan(((32, 32),))
    generated, kept = fill(
        benchmark, folder / "out", draw, plan, progress=False, on_failure=failures.setdefault
    )
    assert (generated, kept) == (2, 0) and sorted(failures) == ["1.png", "2.png", "4.png"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["0.png", "3.png"]
    assert "cut.jpg" in str(failures["1.png"]) and "no finite sample" in str(failures["4.png"])
    with pytest.raises(ValueError, match=r"the source of 1\.png"):
        fill(benchmark, folder / "other", draw, plan, progress=False)


def test_items_of_a_sweep(folder, tuna):
    write_lines(
        folder / "q.jsonl", [{"question": "?", "answer": "x", "image": f"{n}.jpg"} for n in NAMES]
    )
    task = registry.make_task("questions", {"file": "q.jsonl", "style": "log_likelihood"})
    cell = Cell(folder / "cell")
    more = {"seed": 0, "batch": 4}
    cell_store.run_missing(task, cell, tuna, {}, **more)
    entries = results.outcome(cell.records(), {})
    assert entries["scores"]["log_likelihood"]["count"] == 2
    assert entries["failed_items"]["count"] == 2
    assert entries["failed_items"]["error"].startswith("q.jsonl:2: ")
    assert results.failures([entries]) == 1
    assert cell_store.missing(task, cell) == [1, 2], "they are tried again at the next start"
    row = {"run": "r", "step": 1, "task": "t", "settings": {}, **entries}
    assert "2 items FAILED: q.jsonl:2: " in results.table([row])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_a_failed_cell(tmp_path, value):
    def run(model, items, seed):
        return Outcome({"psnr": [value] * len(items)}, ["p"] * len(items))

    task, cell = Task("t", 1, 2, {}, (), run), Cell(tmp_path / "cell")
    if value == float("inf"):
        with pytest.raises(ValueError, match="infinite 'psnr'"):
            cell_store.run_missing(task, cell, None, {}, seed=0, batch=2)
    else:
        cell_store.run_missing(task, cell, None, {}, seed=0, batch=2)
        assert results.outcome(cell.records(), {}) == {
            "error": "no item has a score that is finite"
        }
