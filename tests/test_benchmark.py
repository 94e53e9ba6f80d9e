"""The benchmark's table and file have the right shape; how fast anything is, is no test's business."""

import json

import jax
import numpy as np
import pytest

from tuna_jax import benchmark
from tuna_jax.config import preset
from tuna_jax.data.media import Size
from tuna_jax.models import tuna
from tuna_jax.recipes import data_speed


@pytest.fixture
def tiny(monkeypatch):
    settings = {"pictures": (Size(40, 48),), "size": Size(32, 32), "clip": Size(32, 48), "clip_frames": 6,
                "frames": 5}  # fmt: skip
    whole = data_speed.Settings
    monkeypatch.setattr(data_speed, "Settings", lambda **given: whole(**{**settings, **given}))


def test_every_source_is_measured_beside_its_plain_loop(tiny, tmp_path, capsys) -> None:
    pytest.importorskip("av")
    file = tmp_path / "data.json"
    flags = ["--rounds=2", "--seconds=0.05", "--rows=2", "--count=3", f"--json={file}"]
    flags += ["--workers=1", "--threads=2"]
    assert benchmark.main(["data", *flags]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert " ".join(head.split()) == "source made by rows/s a core plain loop ratio goal"
    told = json.loads(file.read_text())
    names = [f"{kind}, pictures 40x48" for kind in ("JSONL", "TFDS", "latents")]
    names.append("JSONL, clips 32x48")
    assert [one["source"] for one in told["rates"]] == names
    assert [one["goal"] for one in told["rates"]] == [0.9, 0.9, 20.0, 0.9]
    for one, line in zip(told["rates"], lines, strict=True):
        assert line.startswith(one["source"])
        assert one["makers"] == ("2 threads" if "latents" in one["source"] else "1 process")
        assert len(one["rounds"]) == 2
        ratios = [rate / plain for rate, plain in one["rounds"]]
        assert one["ratio"] == pytest.approx(np.mean(ratios))
        assert ("short" in line) == (one["ratio"] < one["goal"])
    assert told["settings"]["rows"] == 2 and told["machine"]["cores"] >= 1


def test_the_plain_loops_do_the_same_work(tmp_path) -> None:
    pytest.importorskip("av")
    from tuna_jax.data.media import read_image
    from tuna_jax.data.video import read_video

    sizes = {"pictures": (Size(48, 64),), "clip": Size(48, 64)}
    settings = data_speed.Settings(**sizes, count=1, clip_frames=20, frames=5)
    made, size = data_speed.make_materials(tmp_path, settings), Size(32, 32)
    (path,) = made.pictures[Size(48, 64)]
    np.testing.assert_array_equal(data_speed.plain_picture(path, size), read_image(path, size))
    np.testing.assert_array_equal(
        data_speed.plain_clip(made.clip, size, 5), read_video(made.clip, size, 5)
    )


def test_what_checkpoints_cost(tmp_path, capsys) -> None:
    file = tmp_path / "checkpoints.json"
    flags = ["--preset=tiny", "--steps=2", "--every=1", "--rounds=1", f"--json={file}"]
    assert benchmark.main(["checkpoints", *flags]) == 0
    shown, told = capsys.readouterr().out, json.loads(file.read_text())
    assert told["settings"]["preset"] == "tiny"
    costs = told["costs"]
    config = preset("tiny")
    params = jax.eval_shape(lambda: tuna.init(config, jax.random.key(0)))
    # Parameters, their average and Adam's two moments, and little more.
    whole = 4 * sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    assert whole < costs["bytes"] < 1.01 * whole
    assert all(value > 0 for value in costs.values())
    assert costs["blocked"] <= costs["whole"]
    assert f"{costs['asynchronous']:.3f} of that without" in shown


def test_help_and_wrong_numbers(capsys) -> None:
    shown = {"data": "--threads", "checkpoints": "--every"}
    for flags, words in (
        (["--help"], "data"),
        *(([kind, "--help"], flag) for kind, flag in shown.items()),
    ):
        with pytest.raises(SystemExit):
            benchmark.main(flags)
        assert words in capsys.readouterr().out
    assert benchmark.main(["data", "--rounds=0"]) == 1
    assert "rounds is 0" in capsys.readouterr().err
    assert benchmark.main(["checkpoints", "--steps=2", "--every=3"]) == 1
    assert "no window would have a save" in capsys.readouterr().err
