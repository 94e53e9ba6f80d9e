"""Training on files: every format learns, what is compiled is known in advance, and a resumed run gets the same batches."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tuna_jax.data.clips import write_clip
from tuna_jax.data.emoji.names import NOUNS
from tuna_jax.data.rendering import default_art, paste
from tuna_jax.data.scenes import GROUNDS
from tuna_jax.recipes import mixture
from tuna_jax.training.metrics import read
from tuna_jax.training.settings import parse

SMALL = {
    "preset": "emoji",
    "representation": {"layers": 1},
    "language": {"layers": 1},
    "flow_head": {"layers": 1},
}


# A batch is a whole epoch: its loss varies little, and 20 of them show whether it falls.
ROWS = 4


def picture(index: int, ground: str, left: int = 12, side: int = 64) -> np.ndarray:
    pixels = np.full((side, side, 3), GROUNDS[ground], np.uint8)
    paste(pixels, default_art(), NOUNS[index].singular, left, 12, 40)
    return pixels


def talk(*texts: str) -> list:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures (JPEG and PNG) and MP4s of emoji, and a manifest of each of the five formats."""
    root = tmp_path_factory.mktemp("files")
    rows: dict[str, list] = {name: [] for name in ("captions", "chats", "text", "edits", "clips")}
    grounds = list(GROUNDS)
    for i in range(ROWS):
        name, ground, other = NOUNS[i].singular, grounds[i], grounds[(i + 3) % 8]
        suffix = (".jpg", ".png")[i % 2]
        before, after = f"{i}{suffix}", f"{i}_after{suffix}"
        Image.fromarray(picture(i, ground)).save(root / before)
        Image.fromarray(picture(i, other)).save(root / after)
        moving = np.stack([picture(i, ground, left=4 + 3 * frame) for frame in range(7)])
        write_clip(root / f"{i}.mp4", moving)
        said = talk("<image>\nwhat is this?", name, "what colour is the background?", ground)
        rows["captions"].append({"image": before, "caption": f"a {name} on {ground}"})
        rows["chats"].append({"image": before, "conversations": said})
        rows["text"].append({"conversations": talk(f"name number {i}", name)})
        rows["edits"].append(
            {"raw_image": before, "out_image": after, "instruction": f"make it {other}"}
        )
        rows["clips"].append({"video": f"{i}.mp4", "caption": f"a {name} moves to the right"})
    for name, listed in rows.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    return root


def experiment(folder, streams, **changes):
    """An experiment's mapping, with `streams` as name -> (task, manifest, further keys)."""
    listed = {
        name: {
            "task": task,
            "manifest": str(folder / f"{manifest}.jsonl"),
            "sizes": ("64x64",),
            "lengths": (96,),
            "rows": ROWS,
            "text_dropout": 0.0,
            **more,
        }
        for name, (task, manifest, more) in streams.items()
    }
    data = {"streams": listed, "vocabulary": "emoji", "cache": str(folder / "cache"), "threads": 2}
    return {
        "kind": "mixture",
        "steps": 20,
        "model": SMALL,
        "data": data | changes.pop("data", {}),
        "optimizer": {"learning_rate": 4e-3, "warmup": 2, "b2": 0.98, "ema": 0.9},
        # Times near one another: the loss of few rows then shows whether it falls.
        "time": {"std": 0.1, "shift": False},
        "log_every": 1,
        "checkpoint_every": 20,
        **changes,
    }


def run(values, workdir):
    """Runs an experiment; returns the lines of its log."""
    mixture.train(values, parse(mixture.MixtureExperiment, values), workdir)
    return read(workdir / "metrics.jsonl")


FORMATS = {
    "captions drawn": ("t2i", "captions", {}, "flow_loss"),
    "captions told": ("understand", "captions", {}, "text_loss"),
    "conversations about pictures": ("understand", "chats", {}, "text_loss"),
    "conversations": ("chat", "text", {}, "text_loss"),
    "edits": ("edit", "edits", {}, "flow_loss"),
    "clips drawn": ("t2v", "clips", {"frames": 5, "sizes": ("32x32",)}, "flow_loss"),
    "clips told": ("video_understand", "clips", {"frames": 5, "sizes": ("32x32",)}, "text_loss"),
}


@pytest.mark.parametrize("name", list(FORMATS))
def test_each_format_trains(folder, tmp_path, name):
    task, manifest, more, loss = FORMATS[name]
    log = run(experiment(folder, {"one": (task, manifest, more)}), tmp_path)
    assert [line["step"] for line in log] == list(range(1, 21))
    values = [line[f"{loss}/one"] for line in log]
    assert np.isfinite([line["loss"] for line in log]).all()
    assert np.mean(values[-5:]) < 0.9 * np.mean(values[:3])
    other = {"flow_loss": "text_loss", "text_loss": "flow_loss"}[loss]
    assert not any(other in line for line in log), "the other head had nothing to learn"
