"""What the production path imports: nothing of the emoji demo."""

import subprocess
import sys

import pytest

_TUNA = "import tuna_jax; tuna_jax.Tuna"
_PLAN = """
from tuna_jax import plan
from tuna_jax.cli import config_flags
from tuna_jax.planning import topology
topology.prepare_environment()
from tuna_jax.planning import abstract_programs, planner, report, stage
stage.read("tuna_7b_stage2", config_flags.read("experiments/tuna/tuna_7b_stage2.py")).streams()
"""
_TRAIN = "from tuna_jax.trainers import evaluate_run, multitask"


@pytest.mark.parametrize("code", [_TUNA, _PLAN, _TRAIN], ids=["Tuna", "plan", "multitask"])
def test_nothing_of_the_emoji_demo_is_imported(code: str) -> None:
    # Modules of other packages do not count: flax.nnx imports rich, which has a module rich.emoji.
    listing = (
        "import sys; print([m for m in sys.modules if m.startswith('tuna_jax') and 'emoji' in m])"
    )
    command = [sys.executable, "-c", f"{code}\n{listing}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_itself_imports_no_jax() -> None:
    code = "import tuna_jax, sys; print('jax' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
