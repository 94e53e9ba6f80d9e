"""A sweep's report: scores, failures with their reasons, images and answers next to each other, two runs compared."""

import numpy as np
import pytest

from tuna_jax.sweeps import cell_store, report_page, results
from tuna_jax.sweeps.cell_store import Cell
from tuna_jax.sweeps.task import Outcome, Task

COUNT = 12


def filled(folder, run, step, guidance, right, texts=False):
    """A row, with its cell, of a task in which the first `right` items are right."""
    key = f"{run}{step}{guidance if not texts else ''}"

    def outcome(model, items, seed):
        pictures = np.stack([np.full((8, 8, 3), 20 * item, np.uint8) for item in items])
        exact = [float(item < right) for item in items]
        prompts = [f"<item> {item}" for item in items]
        if not texts:
            return Outcome({"exact": exact}, prompts, pictures=pictures)
        answers = [f"answer {run} {item}" for item in items]
        return Outcome({"exact": exact}, prompts, ["truth"] * len(items), answers, pictures)

    task = Task("t", 1, COUNT, {}, () if texts else ("guidance",), outcome, {}, "exact")
    cell = Cell(folder / key)
    cell_store.run_missing(task, cell, None, {}, seed=0, batch=4, saved_items=3)
    applied = {} if texts else {"guidance": guidance}
    row = {"run": run, "step": step, "task": "answers" if texts else "images"}
    row |= {"settings": {"guidance": guidance}, "applied": applied, "key": key, "verdict": "exact"}
    return row | {"scores": results.scores(cell.records(), {"exact": 0.125})}


@pytest.fixture
def rows(tmp_path):
    listed = []
    for step, right in ((100, 3), (200, 9)):
        for guidance in (1.0, 2.0):
            listed.append(filled(tmp_path, "first", step, guidance, right))
            listed.append(filled(tmp_path, "first", step, guidance, right, texts=True))
    return listed


def test_the_page_has_scores_curves_pictures_answers_and_failures(rows, tmp_path):
    failed = {"run": "first", "step": 300, "task": "images", "settings": {}, "error": "no <file>"}
    report_page.write(tmp_path / "report.html", "A & B", [*rows, failed], tmp_path, "a note")
    text = (tmp_path / "report.html").read_text()
    assert "<h1>A &amp; B</h1>" in text and "1 result failed" in text and "no &lt;file&gt;" in text
    assert "<b>25.0 %</b>" in text and "<b>75.0 %</b>" in text and "12.5 %" in text
    assert text.count('class="curves"') == 2
    # 4 columns of images and one of prompts, for 3 items; answers have one image per item.
    assert text.count('<figure class="right">') == 4 * 3
    assert text.count("&lt;item&gt; 2</td>") == 1
    assert text.count("answer first 0") == 2, (
        "answers do not depend on guidance, and are listed once"
    )
    assert "a note" in text and "against" not in text


def test_a_result_that_does_not_depend_on_a_setting_is_listed_once(rows):
    kept = report_page.unique(rows)
    assert [row["task"] for row in kept].count("images") == 4
    assert [row["task"] for row in kept].count("answers") == 2


def test_two_runs_are_compared_at_the_last_step_that_both_have(rows, tmp_path):
    more = [filled(tmp_path, "second", step, 2.0, 6) for step in (100, 150)]
    ((task, settings, metric, gap),) = report_page.comparison(
        [*rows, *more], "first", "second", tmp_path
    )
    assert (task, settings, metric) == ("images", "guidance 2.0 (step 100)", "exact")
    assert gap["values"] == [0.25, 0.5] and gap["value"] == pytest.approx(0.25)
    low, high = gap["ci95"]
    assert 0 <= low < 0.25 < high and gap["count"] == COUNT
    del more[0]
    ((_, settings, _, gap),) = report_page.comparison([*rows, *more], "first", "second", tmp_path)
    assert settings == "guidance 2.0 (steps 200 and 150)" and gap["value"] == pytest.approx(-0.25)
    report_page.write(tmp_path / "report.html", "both", [*rows, *more], tmp_path)
    assert "second against first" in (tmp_path / "report.html").read_text()


def test_numbers_have_their_units():
    assert report_page.number("exact", 0.25) == "25.0 %"
    assert report_page.number("untouched_db", 0.5) == "0.50 dB"
    assert report_page.number("fid", 12.345) == "12.35"
