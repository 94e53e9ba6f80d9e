"""The checker names every way in which a folder can be wrong."""

import shutil

import numpy as np
import pytest
from PIL import Image

from tuna_jax.data.media.video import write_video
from tuna_jax.evaluation.benchmarks import validate


@pytest.fixture
def copied(generated, tmp_path):
    """A copy of a folder that the test may damage."""

    def copy(name):
        benchmark, folder = generated[name]
        return benchmark, shutil.copytree(folder, tmp_path / name)

    return copy


def _kinds(problems):
    return [(problem.kind, problem.path) for problem in problems]


def test_what_is_missing_is_named(copied):
    benchmark, folder = copied("geneval")
    (folder / "00001/samples/0002.png").unlink()
    (folder / "00000/metadata.jsonl").unlink()
    assert _kinds(validate.check(benchmark, folder)) == [
        ("missing", "00000/metadata.jsonl"),
        ("missing", "00001/samples/0002.png"),
    ]


@pytest.mark.parametrize(
    ("name", "surplus"),
    [
        ("geneval", "00000/samples/0004.png"),
        ("geneval", "00000/samples/0000.png.part"),  # the scorer takes it for an image
        ("geneval", "00002/metadata.jsonl"),
        ("dpg_bench", "sheet.png"),
        ("oneig", "human/tuna/000.webp.old"),
        ("vbench", "a cat, oil painting-5.mp4"),
        ("vbench", ".DS_Store"),
        ("imgedit", "1083.png"),
        ("gedit", "tuna/fullset/style_change/en/k9.png"),
    ],
)
def test_what_does_not_belong_is_named(copied, name, surplus):
    benchmark, folder = copied(name)
    (folder / surplus).parent.mkdir(exist_ok=True)
    (folder / surplus).write_bytes(b"x")
    assert _kinds(validate.check(benchmark, folder)) == [("surplus", surplus)]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("geneval", "00000/grid.png"),  # optional
        ("dpg_bench", "dpg-bench_20260101-000000_results.txt"),  # the scorers' own results
        ("imgedit", "result.json"),
        ("oneig", "human/another_model/000.webp"),
        ("gedit", "tuna/gpt4o/eval_results_new/a.csv"),
    ],
)
def test_what_scorers_write_and_other_models_are_ignored(copied, name, other):
    benchmark, folder = copied(name)
    (folder / other).parent.mkdir(parents=True, exist_ok=True)
    (folder / other).write_bytes(b"x")
    assert validate.check(benchmark, folder) == []


def test_an_empty_folder_is_surplus(copied):
    benchmark, folder = copied("geneval")
    (folder / "00009").mkdir()
    assert _kinds(validate.check(benchmark, folder)) == [("surplus", "00009")]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("geneval", "00000/samples/0000.png"),
        ("oneig", "human/tuna/000.webp"),
        ("vbench", "a cat, oil painting-0.mp4"),
    ],
)
def test_half_a_file_is_unreadable(copied, name, path):
    benchmark, folder = copied(name)
    whole = (folder / path).read_bytes()
    (folder / path).write_bytes(whole[: len(whole) // 2])
    assert _kinds(validate.check(benchmark, folder)) == [("unreadable", path)]


def test_another_size_is_named(copied):
    benchmark, folder = copied("geneval")
    Image.effect_noise((48, 32), 50).convert("RGB").save(folder / "00000/samples/0001.png")
    (problem,) = validate.check(benchmark, folder)
    assert (problem.kind, problem.path) == ("size", "00000/samples/0001.png")
    assert problem.reason == "its samples are 32x48, expected 32x32 (height x width)"
    # Also where all have a size that differs from the expected one.
    assert len(validate.check(benchmark, folder, [(32, 48)])) == len(benchmark.pieces) - 1


def test_one_image_is_not_a_grid(copied):
    benchmark, folder = copied("dpg_bench")
    Image.effect_noise((33, 32), 50).convert("RGB").save(folder / "7.png")
    (problem,) = validate.check(benchmark, folder)
    assert (problem.kind, problem.path) == ("unreadable", "7.png")
    assert "not a grid of 2x2 samples" in problem.reason
    Image.effect_noise((32, 32), 50).convert("RGB").save(folder / "7.png")
    (problem,) = validate.check(benchmark, folder, [(32, 32)])
    assert problem.reason.startswith("its samples are 16x16")


def test_a_black_sample_is_named(copied):
    """OneIG's scorer skips it silently."""
    benchmark, folder = copied("dpg_bench")
    pixels = np.asarray(Image.open(folder / "7.png")).copy()
    pixels[32:, :32] = 0
    Image.fromarray(pixels).save(folder / "7.png")
    assert _kinds(validate.check(benchmark, folder)) == [("blank", "7.png")]


def test_another_number_of_frames_is_named(copied):
    benchmark, folder = copied("vbench")
    path = "a cat, oil painting-1.mp4"
    clip = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
    write_video(folder / path, clip)
    (problem,) = validate.check(benchmark, folder)
    assert (problem.kind, problem.path) == ("frames", path)
    assert problem.reason == "it has 9 frames, expected 5"
    assert len(validate.check(benchmark, folder, frames=9)) == len(benchmark.pieces) - 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not one line of JSON"),
        ('{"prompt": "a"}\n{"prompt": "b"}\n', "is not one line of JSON"),
        (
            '{"tag": "single_object", "include": [], "prompt": "a photo of a bench"}',
            "'include' is []",
        ),
        ("[1]", "[1], expected"),
    ],
)
def test_metadata_of_another_prompt_is_named(copied, text, words):
    benchmark, folder = copied("geneval")
    (folder / "00000/metadata.jsonl").write_text(text)
    (problem,) = validate.check(benchmark, folder)
    assert (problem.kind, problem.path) == ("companion", "00000/metadata.jsonl")
    assert words in problem.reason


def test_a_source_of_another_size_is_named(copied):
    benchmark, folder = copied("gedit")
    path = "tuna/fullset/ps_human/en/k2_SRCIMG.png"
    Image.new("RGB", (5, 5)).save(folder / path)
    (problem,) = validate.check(benchmark, folder)
    assert (problem.kind, problem.path) == ("companion", path)
    assert problem.reason == "is 5x5 pixels, and the data set's image is 50x30"


def test_the_report_counts_kinds_and_stays_short(copied):
    benchmark, folder = copied("vbench")
    for path in list(folder.glob("In a still*"))[:12]:
        path.unlink()
    (folder / "x.png").write_bytes(b"")
    lines = validate.report(validate.check(benchmark, folder), folder).splitlines()
    assert len(lines) == 13
    assert lines[10] == "... and 2 more like it (missing)"
    assert lines[11] == f"{folder}/x.png: does not belong here"
    assert lines[12].endswith("13 problems: 12 missing, 1 surplus")
    assert validate.report([], folder).endswith("no problems")


def test_no_folder_is_an_error(generated, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        validate.check(generated["geneval"][0], tmp_path / "nothing")
