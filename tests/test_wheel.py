"""What a wheel holds, and that it works without a clone, from an empty folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
import json, sys
from pathlib import Path

import numpy as np
from PIL import Image

import tuna_jax
from tuna_jax import convert, evaluate, generate
from tuna_jax.cli import config_flags

assert Path(tuna_jax.__file__).is_relative_to(sys.argv[1]), tuna_jax.__file__
run = ["--model=emoji", "--steps=4"]
assert generate.main([*run, "--prompt=a red apple on a blue background", "--output=a"]) == 0
ground = np.asarray(Image.open("a/prompt_0.png").convert("RGB"), int)[:3].mean((0, 1))
assert ground[2] > ground[0] + 60, ground  # blue
assert generate.main([*run, "--task=edit", "--image=a/prompt_0.png", "--output=b",
                      "--prompt=make the background green"]) == 0
assert generate.main([*run, "--task=t2v", "--prompt=a cat moves to the left", "--frames=5", "--output=c"]) == 0
assert sorted(map(str, Path().rglob("*_0.*"))) == ["a/prompt_0.png", "b/edit_0.png", "c/video_0.mp4"]
model = tuna_jax.Tuna.load("emoji")
import jax
assert {str(leaf.dtype) for leaf in jax.tree.leaves(model.params)} == {"float32"}
assert "blue" in model.answer(Image.open("a/prompt_0.png"), "what is the background?")
assert convert.main(["inspect", "emoji"]) == 0
assert config_flags.read("emoji/demo")["kind"] == "emoji"
assert config_flags.read("ablations/design", name="study")["arms"]
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The folder of the built package, as a wheel has it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "setup.py", "-q", "build_py", f"--build-lib={folder}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_wheel_has_all_files_of_the_package_and_of_experiments(package):
    command = ["git", "ls-files", "-co", "--exclude-standard", "tuna_jax", "experiments"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {name for name in listed.split("\n") if name and (ROOT / name).exists()}
    expected = {n if n.startswith("tuna_jax/") else f"tuna_jax/{n}" for n in tracked}
    built = {p.relative_to(package).as_posix() for p in package.rglob("*") if p.is_file()}
    assert "tuna_jax/experiments/emoji/demo.py" in built
    assert expected - built == set()
    assert {name for name in built - expected if "__pycache__" not in name} == set()


def test_it_generates_edits_and_answers_from_an_empty_folder(package, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(package)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(package)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
