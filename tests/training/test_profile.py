"""A profile of chosen steps is written; where the profiler would crash, the run does not begin."""

import subprocess
import sys
from pathlib import Path

import pytest

from tuna_jax.train import _steps
from tuna_jax.training import profile
from tuna_jax.training.config import LoopSettings
from tuna_jax.training.profile import Profile

ROOT = Path(__file__).parents[2]
# Python does not find libtpu, with which the profiler crashes on a machine without a TPU.
SCRIPT = """
import sys
sys.modules["libtpu"] = None
import jax
from tuna_jax.training.profile import Profile

profile = Profile((2, 3), 0, sys.argv[1])
ended = []
for step in range(1, 6):
    profile.begin(step)
    ended.append(profile.end(step, jax.numpy.ones(3).sum()))
assert ended == [False, False, True, False, False], ended
"""


def test_a_profile_is_written_after_its_last_step(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_profile_that_would_crash_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(profile, "find_spec", lambda name: name == "libtpu")  # It is installed.
    with pytest.raises(ValueError, match="libtpu"):
        Profile((1, 2), 0, tmp_path)
    Profile((), 0, tmp_path)


@pytest.mark.parametrize("steps", [(1,), (0, 2), (5, 4), (1, 11), (1.5, 2)])
def test_wrong_steps_are_named(steps):
    with pytest.raises(ValueError, match=r"config\.profile_steps"):
        LoopSettings(steps=10, profile_steps=steps)


def test_the_flag_is_two_steps():
    assert _steps("100:105") == (100, 105)
    with pytest.raises(ValueError, match="profile_steps"):
        _steps("100")
