"""The emoji experiment with a tiny model and little data, for tests such as test_resume.py: seconds per run.

With the argument `evaluated`, every second step is evaluated and has a contact sheet.
"""

import os
import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    emoji = Path(__file__).parents[2] / "experiments" / "emoji" / "demo.py"
    config = runpy.run_path(str(emoji))["get_config"]()
    config.steps = 120
    config.model.preset = "tiny"
    config.model.unroll = True  # as the emoji preset
    config.model.language = ConfigDict({"vocabulary": 640})
    config.vae = os.environ.get("TINY_VAE", "")
    config.data.scenes = 64
    config.data.generation_rows = 2
    config.data.understanding_rows = 2
    config.log_every = 1
    config.sample_every = 0
    config.checkpoint_every = 11
    config.optimizer.warmup = 5
    if arg == "evaluated":
        config.sample_every = 2
        config.samples.update(count=4, steps=2)
        config.evaluate = ConfigDict({"every": 2, "batch": 8, "saved_items": 4})
        config.evaluate.tasks = ConfigDict(
            {
                "generate_single": {"count": 4},
                "name": {"kind": "answer", "question": "name", "count": 4},
            }
        )
    return config
