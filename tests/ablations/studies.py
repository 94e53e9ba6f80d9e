"""A small study, and a trainer that takes its place: it writes results without training."""

import copy
import sys
import textwrap
from pathlib import Path

VALUES = {
    "name": "Colours",
    "question": "Which colour is best?",
    "experiment": {"kind": "fake", "steps": 4, "seed": 0, "data": {"seed": 0, "size": 64}},
    "arms": {"red": {}, "blue": {"data": {"size": 96}}, "green": {"data": {"size": 128}}},
    "reference": "red",
    "seeds": (0, 1, 2),
    "seed_keys": ("seed", "data.seed"),
    "every": 2,
    "tasks": {"name": {"kind": "answer", "question": "name", "count": 4}},
    "claims": {
        "blue beats red": {
            "metric": "name/exact",
            "better": "blue",
            "worse": "red",
            "paper": "61.4 against 61.7",
        }
    },
}


def values(**changes):
    """The study's mapping with other entries."""
    return copy.deepcopy(VALUES) | changes


# Scores: size / 1000 + seed / 100, at step 2 half of it. A run whose size is 128 and whose seed is 1 fails; one with a
# file `wait` next to it waits for SIGTERM. Each start adds a line to `starts`.
_TRAINER = """
import json, pathlib, runpy, signal, sys, time
flags = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
values = runpy.run_path(flags["config"])["get_config"]().to_dict()
workdir = pathlib.Path(flags["workdir"])
with (workdir.parent / "starts").open("a") as file:
    file.write(f"{workdir.name}\\n")
if (workdir.parent / "wait").exists():
    def stop(number, frame):
        (workdir.parent / f"{workdir.name}.saved").write_text("")
        sys.exit(1)
    signal.signal(signal.SIGTERM, stop)
    (workdir.parent / "waiting").write_text("")
    time.sleep(60)
if values["data"]["size"] == 128 and values["seed"] == 1 and not (workdir.parent / "mended").exists():
    print("progress\\rerror: config.data.size is 128")
    sys.exit(1)
score = values["data"]["size"] / 1000 + values["data"]["seed"] / 100
folder = workdir / "evaluation"
folder.mkdir(parents=True)
rows = [
    {"run": workdir.name, "step": step, "task": "name", "settings": {}, "key": str(step),
     "scores": {"exact": {"value": score * step / 4, "count": 4, "chance": 0.01}}}
    for step in (2, 4)
]
(folder / "results.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
(workdir / "model.safetensors").write_text("")
"""


def trainer(folder: Path) -> tuple[str, str]:
    """The command of the trainer, whose program is written into `folder`."""
    path = folder / "trainer.py"
    path.write_text(textwrap.dedent(_TRAINER))
    return sys.executable, str(path)
