"""The generating side of emoji_all alone: pictures, edits and clips are drawn, nothing is asked.

python -m tuna_jax.train --config=experiments/emoji/generation_only.py --workdir=runs/emoji_generation

The same budget is meant as in emoji_understanding.py: the same steps and the same rows in a batch of each shape. Rows
that ask in emoji_all draw here, and the batches of dialogues go to the other groups, in their proportions there.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    joint = Path(__file__).with_name("all_tasks.py")
    config = runpy.run_path(str(joint))["get_config"](arg)
    data, clips = config.data, config.data.clips
    data.generation_rows, data.understanding_rows = (
        data.generation_rows + data.understanding_rows,
        0,
    )
    clips.generation_rows, clips.understanding_rows = (
        clips.generation_rows + clips.understanding_rows,
        0,
    )
    data.dialogues.rows = 0
    return config
