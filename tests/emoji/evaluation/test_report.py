"""The report is one file that needs nothing else, and says what was measured."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from PIL import Image

from tuna_jax.emoji.evaluation import loss_curves, report
from tuna_jax.emoji.evaluation.images import AnsweredQuestion, Sheet
from tuna_jax.emoji.evaluation.suite import Evaluation
from tuna_jax.evaluation.metrics.accuracy import Score
from tuna_jax.utils.image_grid import RIGHT, WRONG, contact_sheet


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def evaluation(pictures):
    names = (*report.HEADLINE, "place_accuracy")
    scores = {name: Score.of([True, True, False, True], 1 / 64) for name in names}
    sheet = Sheet("One <object>", pictures, ("a dog", "an owl & a fox", "<b>"), (True, False, None))
    answered = [
        AnsweredQuestion(pictures[0], "name", "what is this?", "a dog", "a dog"),
        AnsweredQuestion(
            pictures[1], "name", "what is this?", "an owl", "<script>alert(1)</script>"
        ),
    ]
    return Evaluation(scores, {}, [sheet], answered, 27.5)


@pytest.fixture
def metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [json.dumps({"step": i, "loss": 2 / (i + 1), "rate": None}) for i in range(30)]
    path.write_text("\n".join(rows) + '\n{"step": 31, "lo')
    return path


class Elements(HTMLParser):
    """Every element with its attributes, and nesting errors."""

    def __init__(self):
        super().__init__()
        self.found, self.open, self.faults = [], [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)


def test_report_is_self_contained_and_well_formed(tmp_path, evaluation, metrics):
    path = report.write(
        tmp_path / "out",
        evaluation,
        metrics=metrics,
        minutes=12.25,
        facts={"steps": 7},
        lead="It <learned>.",
    )
    page = path.read_text()
    elements = Elements()
    elements.feed(page)
    assert not elements.faults
    assert not elements.open
    tags = [tag for tag, _ in elements.found]
    assert not set(tags) & {"script", "link", "iframe", "object"}
    sources = [attributes["src"] for tag, attributes in elements.found if tag == "img"]
    assert len(sources) == 3 + 2 + 1  # the sheet, the answers, the curves
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"url\(|@import|href=|srcset=", page)
    assert "&lt;script&gt;" in page
    assert "It &lt;learned&gt;." in page
    assert "an owl &amp; a fox" in page


def test_report_marks_verdicts(tmp_path, evaluation):
    page = report.write(tmp_path, evaluation).read_text()
    for kind, text in (("right", "a dog"), ("wrong", "an owl &amp; a fox"), ("plain", "&lt;b&gt;")):
        assert re.search(rf'<figure class="{kind}">.*?<figcaption>{re.escape(text)}<', page)
    assert "1 of these 2 were judged right" in page


def test_summary(tmp_path, evaluation):
    report.write(tmp_path, evaluation, minutes=12.25)
    found = json.loads((tmp_path / "summary.json").read_text())
    for name in report.HEADLINE:
        assert set(found[name]) >= {"value", "chance", "count"}
    assert found["single_object_accuracy"]["value"] == 0.75
    assert found["single_object_accuracy"]["count"] == 4
    assert found["vae_psnr_db"] == 27.5
    assert found["minutes"] == 12.25


def test_sheets_lie_beside_the_report(tmp_path, evaluation):
    report.write(tmp_path, evaluation)
    files = list((tmp_path / "sheets").glob("*.png"))
    assert [file.name for file in files] == ["0_one_object.png"]
    assert Image.open(files[0]).size[0] > 3 * 128


def test_a_run_without_metrics_has_a_report_without_curves(tmp_path, evaluation):
    page = report.write(tmp_path, evaluation, metrics=tmp_path / "nothing.jsonl").read_text()
    assert "training curves" not in page


def test_metrics_with_a_torn_last_line_are_read(metrics):
    series = loss_curves.read_metrics(metrics)
    steps, values = series["loss"]
    assert len(steps) == 30
    assert values[1] == 1.0
    assert "rate" not in series


def test_contact_sheet_shows_every_picture(pictures):
    sheet = contact_sheet(pictures, ["a", "b", "c"], [True, False, None], columns=2, scale=1)
    pixels = np.asarray(sheet)
    found = set(map(tuple, pixels.reshape(-1, 3).tolist()))
    assert RIGHT in found
    assert WRONG in found
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (64, 64, 3))[:, :, 0]
    for picture in pictures:
        assert (windows[..., 0, 0, :] == picture[0, 0]).all(-1).any()
        rows, columns = np.nonzero((windows[..., 0, 0, :] == picture[0, 0]).all(-1))
        assert any((windows[r, c] == picture).all() for r, c in zip(rows, columns, strict=True))


def test_contact_sheet_checks_its_input(pictures):
    with pytest.raises(ValueError, match="3 images, 1 labels"):
        contact_sheet(pictures, ["a"])
    # With run-time checks of annotations on, as in these tests, those come first.
    with pytest.raises((ValueError, TypeCheckError), match=r"uint8|UInt8"):
        contact_sheet(pictures / 255.0, ["a", "b", "c"])
    assert contact_sheet(pictures[:0], []).size[0] > 0


def test_long_labels_are_wrapped_and_cut(pictures):
    long = "a very long label " * 20
    one = contact_sheet(pictures[:1], [long])
    assert one.size == contact_sheet(pictures[:1], ["short"]).size
