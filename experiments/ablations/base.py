"""The experiment that all arms of the ablation studies share: TUNA on a small hard world, for two CPU cores.

python -m tuna_jax.train --config=experiments/ablations/base.py --workdir=runs/ablations/base

docs/ablations.md says how its size was chosen.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

WORLD = {"nouns": 5, "colours": 3}
SPLITS = ("test_single",)
EVERY = 500  # steps between evaluations
GENERATION = ("full", "partial")
UNDERSTANDING = ("name", "describe")


def get_config(arg: str = "") -> ConfigDict:
    hard = Path(__file__).parents[1] / "emoji" / "hard.py"
    config = runpy.run_path(str(hard))["get_config"](arg)
    config.steps = 1_000
    config.data.update(WORLD)
    config.data.layouts = ConfigDict({"single": 1.0})
    config.data.scenes = 4_000
    config.data.length = 60
    config.data.order_seed = 0
    # Twice the demo's rate, for few steps. The demo's mostly noisy times teach places: with a mean of -0.8 they are
    # not learned in 1,000 steps (docs/hard_world.md).
    config.optimizer.learning_rate = 4e-3
    config.samples.steps = 9
    config.checkpoint_every = 500
    config.keep = 1
    config.log_every = 50
    return config


def tasks() -> ConfigDict:
    """What every study measures."""
    world = {**WORLD, "splits": SPLITS}
    return ConfigDict(
        {
            "full": {"kind": "hard_generate", "caption": "full", "count": 96, **world},
            "partial": {"kind": "hard_generate", "caption": "partial", "count": 96, **world},
            "name": {"kind": "hard_answer", "question": "name", "count": 96, **world},
            "describe": {"kind": "hard_answer", "question": "describe", "count": 96, **world},
        }
    )


def study(name: str, question: str, arg: str = "") -> ConfigDict:
    """What every study has in common; a study adds its arms and claims."""
    config = ConfigDict()
    config.name = name
    config.question = question
    config.experiment = get_config(arg)
    config.seeds = (0, 1, 2, 3, 4)
    config.seed_keys = ("seed", "data.order_seed")
    config.every = EVERY
    config.tasks = tasks()
    config.arm_tasks = ConfigDict()
    config.settings = ConfigDict()
    config.batch = 32
    config.evaluation_seed = 7
    config.arms = ConfigDict()
    config.claims = ConfigDict()
    return config
