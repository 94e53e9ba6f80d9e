"""The benchmark's table and file have the right form; speeds are not tested."""

import importlib.util
import json
import sys

import jax
import numpy as np
import pytest

from tuna_jax import benchmark
from tuna_jax.config import preset
from tuna_jax.data.media.image import Size
from tuna_jax.models import tuna
from tuna_jax.perf import harness, index, input_files, input_pipeline, startup


@pytest.fixture
def tiny(monkeypatch):
    settings = {"pictures": (Size(40, 48),), "size": Size(32, 32), "clip": Size(32, 48), "clip_frames": 6,
                "frames": 5}  # fmt: skip
    whole = input_pipeline.Settings
    monkeypatch.setattr(
        input_pipeline, "Settings", lambda **changes: whole(**{**settings, **changes})
    )


KINDS = ("JSONL", "JSON array", "TFDS", "ArrayRecord", "Parquet", "WebDataset")
has_webdataset = importlib.util.find_spec("webdataset") is not None


def test_every_source_is_compared_with_its_plain_loop(tiny, tmp_path, capsys, monkeypatch) -> None:
    pytest.importorskip("av")
    monkeypatch.setattr(input_pipeline, "_LARGE", 40)
    file = tmp_path / "data.json"
    flags = ["--rounds=2", "--seconds=0.05", "--rows=2", "--count=3", f"--json={file}"]
    flags += ["--workers=1", "--threads=2"]
    assert benchmark.main(["data", *flags]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert " ".join(head.split()) == "source made by rows/s per core plain loop ratio of work goal"
    report = json.loads(file.read_text())
    goals = {f"{kind}, pictures 40x48": 0.9 for kind in KINDS}
    goals |= {"WebDataset : webdataset, 40x48": 1.0} if has_webdataset else {}
    goals |= {"latents, pictures 40x48": 20.0, "JSONL, clips 32x48": 0.9}
    goals |= {"JSONL reduced, pictures 40x48": 1.5}
    assert {rate["source"]: rate["goal"] for rate in report["rates"]} == goals
    for rate, line in zip(report["rates"], lines, strict=True):
        assert line.startswith(rate["source"])
        assert rate["makers"] == ("2 threads" if "latents" in rate["source"] else "1 process")
        assert len(rate["rounds"]) == 2
        ratios = [loader / plain for loader, plain in rate["rounds"]]
        assert rate["ratio"] == pytest.approx(np.mean(ratios))
        assert 0 < rate["work_ratio"] < 1000 and f"{rate['work_ratio']:.2f}" in line
        assert ("short" in line) == (rate["ratio"] < rate["goal"])
    assert report["settings"]["rows"] == 2 and report["machine"]["cores"] >= 1


def test_the_plain_loops_do_the_same_work(tmp_path) -> None:
    pytest.importorskip("av")
    from tuna_jax.data.media.image import read_image
    from tuna_jax.data.media.video import read_video

    sizes = {"pictures": (Size(48, 64),), "clip": Size(48, 64)}
    settings = input_pipeline.Settings(**sizes, count=1, clip_frames=20, frames=5)
    files = (settings.pictures, settings.count, settings.clip, settings.clip_frames)
    materials, size = input_files.make_materials(tmp_path, *files), Size(32, 32)
    (path,) = materials.pictures[Size(48, 64)]
    np.testing.assert_array_equal(input_pipeline.plain_picture(path, size), read_image(path, size))
    np.testing.assert_array_equal(
        input_pipeline.plain_clip(materials.clip, size, 5), read_video(materials.clip, size, 5)
    )


def test_the_costs_of_checkpoints_are_measured(tmp_path, capsys) -> None:
    file = tmp_path / "checkpoints.json"
    flags = ["--preset=tiny", "--steps=1", "--every=1", "--log_every=1", "--rounds=1"]
    flags.append(f"--json={file}")
    assert benchmark.main(["checkpoints", *flags]) == 0
    printed, report = capsys.readouterr().out, json.loads(file.read_text())
    assert report["settings"]["preset"] == "tiny"
    costs = report["costs"]
    config = preset("tiny")
    params = jax.eval_shape(lambda: tuna.init(config, jax.random.key(0)))
    # Parameters, their average and Adam's two moments, and little more.
    whole = 4 * sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    assert whole < costs["bytes"] < 1.01 * whole
    assert all(value > 0 for value in costs.values())
    assert costs["blocked"] <= costs["whole"]
    assert f"{costs['asynchronous']:.3f} of that without saves" in printed


_FAKE = """
import json, pathlib
import numpy as np
from safetensors.numpy import load_file

LOG = pathlib.Path(__file__).with_suffix(".log")

def log(*values):
    with LOG.open("a") as file:
        file.write(json.dumps(values) + chr(10))

def build(config, weights):
    state = load_file(weights)
    log("build", config["language"]["width"], list(state["tuna.model.embed_tokens.weight"].shape), len(state))
    return config

def sample(model, request):
    log("sample", request["length"], request["steps"], len(request["positive"]), "source" in request)
    return request["noise"]

def train_step(model, batch):
    log("train_step", list(batch["tokens"].shape), int((batch["labels"] != -100).sum()))
    return 1.0

def decode(model, request):
    log("decode", len(request["tokens"]), request["new"])
    return np.zeros((1, request["new"]), int)
"""


@pytest.fixture
def baseline_file(tmp_path):
    file = tmp_path / "fake.py"
    file.write_text(_FAKE)
    return file


@pytest.fixture(autouse=True)
def quick_matmul_rate(monkeypatch):
    """Measures the machine's own rate with one product of small matrices."""
    monkeypatch.setattr(harness, "WINDOW", 0.0)
    monkeypatch.setattr(harness, "MATRIX", 256)


def _measured(kind, flags, tmp_path, capsys):
    """The table that a kind prints, and the groups of its JSON, checked against each other."""
    file = tmp_path / f"{kind}.json"
    assert benchmark.main([kind, *flags, "--rounds=3", f"--json={file}"]) == 0
    printed, report = capsys.readouterr().out, json.loads(file.read_text())
    for group in report["groups"]:
        assert group["name"] in printed and group["matmul"] == np.median(group["rates"]) > 0
        first = group["variants"][0]
        for variant in group["variants"]:
            assert variant["name"] in printed
            assert len(variant["rounds"]) == 3
            assert variant["seconds"] == np.median(variant["rounds"])
            ratios = np.divide(variant["rounds"], first["rounds"])
            assert variant["ratio"] == pytest.approx(np.median(ratios))
            assert variant["memory"] > 0 and variant["processor"] > 0
            shares = variant["flops"] / np.multiply(variant["rounds"], group["rates"])
            assert variant["share"] == pytest.approx(np.median(shares))
        assert first["ratio"] == 1.0 and first["flops"] > 0
    return report, report["groups"]


def _calls(baseline_file):
    lines = baseline_file.with_suffix(".log").read_text().splitlines()
    return [tuple(json.loads(line)) for line in lines]


_SMALL = ["--preset=tiny", "--prompt=5", "--negative=2", "--side=2", "--steps=2"]


@pytest.mark.slow
def test_generation_is_compared_with_no_cache_and_a_baseline(
    baseline_file, tmp_path, capsys
) -> None:
    flags = [
        *_SMALL,
        "--lengths=0,40,64",
        "--longest=40",
        "--whole=50",
        f"--baseline={baseline_file}",
    ]
    report, (group,) = _measured("sample", flags, tmp_path, capsys)
    variants = {variant["name"]: variant for variant in group["variants"]}
    assert list(variants) == ["tuna_jax"] + [
        *(f"without the cache, {length} tokens" for length in (14, 40)),
        *(f"fake, {length} tokens" for length in (14, 40, 64)),
    ]
    assert report["settings"]["lengths"] == "0,40,64"
    # Two steps of one image with both branches of guidance: without the cache, a longer sequence costs more.
    ours, tight, padded = (variant["flops"] for variant in group["variants"][:3])
    assert ours < tight < padded and padded / tight == pytest.approx(40 / 14, rel=0.3)
    assert [variants[f"fake, {n} tokens"]["part"] for n in (14, 40, 64)] == [1.0, 1.0, 0.5]
    assert variants["fake, 64 tokens"]["flops"] == 0
    # The fake returns its noise, so it differs; the length with only one step is not compared.
    differences = group["notes"]["difference from the baseline"]
    assert set(differences) == {"14", "40"} and min(differences.values()) > 0.01
    calls = _calls(baseline_file)
    assert calls[0][:3] == ("build", 64, [512, 64])
    assert set(calls[1:]) == {("sample", n, s, 1, False) for n, s in ((14, 2), (40, 2), (64, 1))}
    # One to warm up, one to measure its memory, three rounds.
    assert calls.count(("sample", 64, 1, 1, False)) == 5


@pytest.mark.slow
def test_edits_and_clips_are_measured(baseline_file, tmp_path, capsys) -> None:
    flags = [*_SMALL, "--lengths=0", f"--baseline={baseline_file}"]
    _, (group,) = _measured("edit", flags, tmp_path, capsys)
    # <bos> <boi> span <eoi> words <boi> span <eoi> <eos>
    assert [variant["name"] for variant in group["variants"]][1:] == [
        "without the cache, 21 tokens",
        "fake, 21 tokens",
    ]
    assert ("sample", 21, 2, 1, True) in _calls(baseline_file)
    _, (group,) = _measured("video", [*_SMALL, "--batch=2"], tmp_path, capsys)
    assert group["variants"][1]["name"] == "without the cache, 22 tokens"
    assert group["variants"][0]["rate"] == pytest.approx(2 / group["variants"][0]["seconds"])


def test_decoding_is_measured_at_every_batch_size(baseline_file, tmp_path, capsys) -> None:
    flags = [
        "--preset=tiny",
        "--batches=1,3",
        "--prompt=6",
        "--new=4",
        f"--baseline={baseline_file}",
    ]
    _, groups = _measured("decode", flags, tmp_path, capsys)
    for rows, group in zip((1, 3), groups, strict=True):
        ours, whole, theirs = group["variants"]
        assert theirs["name"] == "fake"
        assert ours["rate"] == pytest.approx(4 * rows / ours["seconds"])
        # Four rounds of one token per row after six prompt tokens, against four rounds of ten tokens.
        assert 3 < whole["flops"] / ours["flops"] < 5
        assert group["notes"]["share of tokens equal to the baseline's"] < 1
    single, three = (group["variants"][0]["flops"] for group in groups)
    assert three == 3 * single
    assert ("decode", 3, 4) in _calls(baseline_file)


def test_a_training_step_is_measured(baseline_file, tmp_path, capsys) -> None:
    flags = ["--preset=tiny", "--words=4", "--side=2", "--tokens=16", f"--baseline={baseline_file}"]
    _, (group,) = _measured("train", [*flags, "--steps=2"], tmp_path, capsys)
    ours, theirs = group["variants"]
    assert theirs["name"] == "fake" and theirs["flops"] == 0
    assert ours["rate"] == pytest.approx(2 * 2 * 16 / ours["seconds"])
    config = preset("tiny")
    params = jax.eval_shape(lambda: tuna.init(config, jax.random.key(0)))
    layers = params["language"]["layers"], params["flow_head"]["layers"]
    kernels = sum(leaf.size for leaf in jax.tree.leaves(layers) if leaf.ndim == 3)
    modulation = params["flow_head"]["layers"]["modulation"]["linear"]["kernel"].size
    # Forward and twice as much backward, of 2 steps of 2 rows of 16 tokens, and a little more than these layers.
    floor = 3 * 2 * (kernels - modulation) * 2 * 2 * 16
    assert floor < ours["flops"] < 2 * floor
    assert ("train_step", [2, 16], 8) in _calls(baseline_file)
    assert "tuna_jax_baseline_fake" not in sys.modules, "the baseline runs in its own process"


@pytest.mark.slow
def test_the_vae_is_measured(tmp_path, capsys) -> None:
    flags = ["--preset=tiny", "--batch=1", "--size=32", "--frames=5"]
    _, groups = _measured("vae", flags, tmp_path, capsys)
    assert [group["name"].split()[0] for group in groups] == ["encoding", "decoding"]
    for group in groups:
        whole, chunked = group["variants"]
        assert whole["name"] == "tuna_jax whole"
        assert chunked["flops"] == pytest.approx(whole["flops"], rel=0.2)
    _, groups = _measured("vae", [*flags[:-1], "--frames=1"], tmp_path, capsys)
    assert [len(group["variants"]) for group in groups] == [1, 1]


@pytest.mark.slow
def test_a_new_process_generates_its_first_image(tmp_path, capsys) -> None:
    file = tmp_path / "startup.json"
    assert benchmark.main(["startup", "--rounds=1", f"--json={file}"]) == 0
    printed, report = capsys.readouterr().out, json.loads(file.read_text())
    cold, warm = report["started"]
    for startup_report in (cold, warm):
        assert f"{startup_report['total']:.2f} s" in printed
        stages = [startup_report["stages"][stage] for stage in startup.STAGES]
        assert min(stages) > 0
        assert startup_report["total"] == pytest.approx(sum(stages[:-1]))
    assert (cold["cache"], warm["cache"]) == ("cold", "warm")


def test_a_baseline_without_build_is_refused(tmp_path, capsys) -> None:
    file = tmp_path / "empty.py"
    file.write_text("def sample(model, request): pass")
    assert benchmark.main(["sample", *_SMALL, "--lengths=0", f"--baseline={file}"]) == 1
    assert "build(config, weights)" in capsys.readouterr().err


def test_help_and_wrong_numbers(capsys) -> None:
    flag_in_help = {
        "data": "--threads",
        "checkpoints": "--every",
        "sample": "train_step(model, batch",
    }
    flag_in_help |= {
        "edit": "--lengths",
        "video": "--frames",
        "decode": "--new",
        "train": "--remat",
    }
    flag_in_help |= {"vae": "--size", "startup": "--model", "load": "--tensor"}
    for flags, words in (
        (["--help"], "data"),
        *(([kind, "--help"], flag) for kind, flag in flag_in_help.items()),
    ):
        with pytest.raises(SystemExit):
            benchmark.main(flags)
        assert words in capsys.readouterr().out
    assert benchmark.main(["data", "--rounds=0"]) == 1
    assert "rounds is 0" in capsys.readouterr().err
    wrong = {
        "no window would have a save": ["checkpoints", "--steps=2", "--every=3"],
        "325 tokens": ["sample", "--lengths=300"],
        "lengths is 'many'": ["sample", "--lengths=many"],
        "batches is '0'": ["decode", "--batches=0"],
        "tokens is 10": ["train", "--tokens=10"],
        "nobody.py": ["train", "--preset=tiny", "--baseline=nobody.py"],
        "height 70": ["vae", "--size=70"],
        "nowhere": ["startup", "--model=nowhere"],
    }
    for words, flags in wrong.items():
        assert benchmark.main(flags) == 1
        assert words in capsys.readouterr().err


def test_starts_on_an_index_are_measured_by_rows_and_workers(tmp_path, capsys, monkeypatch) -> None:
    file, real = tmp_path / "index.json", index._start
    few = {"seconds": 1.0, "imports": 0.5, "peak": 1 << 20, "private": 1 << 20, "total": 1 << 20}
    monkeypatch.setattr(
        index,
        "_start",
        lambda place, workers: few if place.name == "1000" else real(place, workers),
    )
    flags = ["--rows=300000", "--workers=1", "--rounds=1", f"--json={file}"]
    assert benchmark.main(["index", *flags]) == 0
    first, later = json.loads(file.read_text())["starts"]
    assert (first["rows"], first["workers"], first["first"], later["first"]) == (
        300_000,
        1,
        True,
        False,
    )
    assert first["seconds"] > first["imports"] > 0
    # Files of the index: 7 bytes of the scan, and 4 of a bucket's number; small buckets have no files of their orders.
    assert 6 < later["files"]["scan"] < 8 and 4 <= later["files"]["buckets"] < 4.1
    out = capsys.readouterr().out
    assert "100,000,000 rows, later start, 1 workers" in out and "goal 60" in out


def test_extrapolation_keeps_what_few_rows_take() -> None:
    start = index.Start(10, 1, False, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, {})
    assert index.extrapolated(start, 100) == pytest.approx(12.0)


def test_each_process_reads_and_holds_its_own_shards(tmp_path, capsys) -> None:
    file = tmp_path / "load.json"
    settings = ["--preset=emoji", "--processes=2", "--devices=2", f"--json={file}"]
    assert benchmark.main(["load", *settings]) == 0
    loads = json.loads(file.read_text())["loads"]
    assert [one["process"] for one in loads] == [0, 1]
    parameters = harness.random_model("emoji")[1]
    whole = sum(2 * leaf.size for leaf in jax.tree.leaves(parameters))
    for one in loads:
        assert 0.5 * whole <= one["shards"] < 0.6 * whole  # Small parameters are on all devices.
        # The header of the file, and parameters that both devices of a process hold, are read once.
        assert 0.9 * one["shards"] < one["read"] < 1.1 * one["shards"]
    assert f"{loads[1]['read'] / loads[1]['shards']:.3f}" in capsys.readouterr().out
