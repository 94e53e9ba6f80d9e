"""The table and the page, from results written by hand."""

import json

import pytest

from tuna_jax.planning import markdown_page, report

GIB = 2**30


def result(stream="draw", share=0.75, fits=True, step=2.0):
    values = {
        "experiment": "stage", "program": "train", "stream": stream, "share": share, "topology": "v5e:4x4",
        "slices": 1, "chips": 16, "devices": 16, "mesh": {"data": 2, "fsdp": 8, "tensor": 1}, "remat": "full",
        "attention": "xla", "steps": 3_600, "rows": 64, "tokens": 64_000, "pictures": 64,
        "memory": {
            "fits": fits, "peak": 8 * GIB if fits else 30 * GIB, "usable": 16 * GIB, "spare": 0.5,
            "parts": {"parameters": 2 * GIB, "optimizer": 3 * GIB, "average": GIB},
        },
        "flops": {"counted": 64e12, "useful": 48e12},
        "compiler": {"seconds": 99.0, "host_memory": 3 * GIB, "jax": "0.10", "libtpu": "0.0"},
    }  # fmt: skip
    if fits:
        values["network"] = {"bytes": {"all-gather": 5 * GIB}, "dcn": 0.0}
        values["bound"] = {"step": step, "unhidden": 3.0, "binds": "network", "mfu": 0.25}
    return values


def test_a_row_says_what_is_known():
    cells = dict(zip(report.HEADINGS, report.row(result()), strict=True))
    assert cells["program"] == "train draw"
    assert cells["rows per device"] == "4"
    assert cells["HBM"] == "8.00 of 16.00"
    assert (cells["parameters"], cells["optimizer"], cells["rest"]) == ("2.00", "4.00", "2.00")
    assert (cells["TFLOP"], cells["again"], cells["sent"]) == ("4", "25%", "5.00")
    assert (cells["step"], cells["binds"], cells["MFU"]) == ("2.00 s (3.00 s)", "network", "25%")
    assert (cells["tokens/s"], cells["images/s"]) == ("32,000", "32.0")


def test_what_does_not_fit_has_no_bound():
    cells = dict(zip(report.HEADINGS, report.row(result(fits=False)), strict=True))
    assert (cells["fits"], cells["HBM"], cells["step"]) == ("no", "30.00 of 16.00", "-")
    assert report.verdict(result(fits=False)) == "train draw: does not fit: 30.00 of 16.00 GiB"


def test_the_stage_costs_its_steps_by_their_shares():
    """2 s three times of four and 4 s else are 2.5 s; 3,600 of them on 16 chips are 40 chip-hours."""
    both = [result(), result("describe", 0.25, step=4.0)]
    assert "at least 40 chip-hours (48)" in report.stage_cost(both)
    assert "MFU at most 25% (21%)" in report.stage_cost(both)
    assert report.stage_cost(both[:1]) == ""
    assert report.stage_cost([result(), result("describe", 0.25, fits=False)]) == ""


def test_a_stage_is_one_line_of_the_page():
    both = [result(), result("describe", 0.25, step=4.0) | {"rows": 32}]
    both[0]["memory"]["spare"] = 0.3
    cells = dict(zip(report.GLANCE, report.glance(both) or (), strict=True))
    assert cells == {
        "experiment": "stage", "topology": "v5e:4x4", "mesh": "data 2 x fsdp 8", "remat": "full",
        "rows per device": "2 to 4", "spare HBM": "30%", "step": "2.50 s (3.00 s)", "MFU": "25% (21%)",
        "binds": "network", "chip-hours": "40 (48)",
    }  # fmt: skip
    assert report.glance(both[:1]) is None  # not all streams were planned


def test_inference_layouts_are_a_section_of_their_own(tmp_path):
    layout = {"name": "replicated", "dtype": "bfloat16", "chosen": True}
    sampled = result(stream="") | {"program": "sample", "layout": layout, "mesh": {"data": 16}}
    cells = dict(zip(report.LAYOUTS, report.layout_row(sampled), strict=True))
    assert (cells["layout"], cells["mesh"], cells["parameters in"]) == (
        "replicated", "data 16", "bfloat16",
    )  # fmt: skip
    assert (cells["chosen"], cells["images"], cells["time"]) == ("yes", "64", "2.00 s (3.00 s)")
    other = sampled | {"layout": layout | {"name": "FSDP", "chosen": False}}
    assert report.layout_row(other)[3] == ""
    plan = {"kind": "layouts", "command": ["--layouts"], "results": [sampled, other]}
    (tmp_path / "a.json").write_text(json.dumps(plan))
    page = markdown_page.collect(tmp_path, tmp_path / "page.md")
    assert "## Inference layouts: stage on v5e:4x4" in page and "| FSDP |" in page
    assert "at a glance" not in page


def test_the_page_holds_every_file_and_its_command(tmp_path):
    plan = {
        "kind": "plan",
        "command": ["--config=a.py"],
        "results": [result(share=1.0)],
        "search": ["2 tried"],
    }
    rows = [
        {"tokens": 8192, "backend": "xla", "fits": True, "peak": 4.5 * GIB, "usable": None},
        {"tokens": 32768, "backend": "xla", "fits": False, "peak": 70 * GIB, "usable": 16 * GIB},
    ]
    attention = {
        "kind": "attention",
        "command": ["--attention"],
        "topology": "v5e:2x2",
        "results": rows,
    }
    (tmp_path / "stage.json").write_text(json.dumps(plan))
    (tmp_path / "attention.json").write_text(json.dumps(attention))
    text = markdown_page.collect(tmp_path, tmp_path / "page.md")
    assert "tuna-jax plan --config=a.py" in text
    assert "mesh data 2 x fsdp 8, remat full, attention xla" in text
    assert "| train draw | 4 | yes | 8.00 of 16.00 |" in text
    assert "| stage | v5e:4x4 | data 2 x fsdp 8 | full | 4 | 50% | 2.00 s (3.00 s) |" in text
    assert "Search: 2 tried." in text
    assert "the slowest program compiled in 99 s, with 3.0 GiB" in text
    assert "| 8,192 | xla | yes | 4.5 |" in text
    assert "| 32,768 | xla | no, there are 16 GiB | 70 |" in text


def test_a_file_that_is_no_plan_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"--collect=.*\.json"):
        markdown_page.collect(tmp_path, tmp_path / "page.md")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json"):
        markdown_page.collect(tmp_path, tmp_path / "page.md")
