"""Only the generation tasks of all_tasks.py: images, edits and clips, without questions.

python -m tuna_jax.train --config=experiments/emoji/generation_only.py --workdir=runs/emoji_generation

The budget equals that of all_tasks.py, as in understanding_only.py: the same number of steps, and the same number of
rows per batch of each shape. Question rows of all_tasks.py are generation rows here, and the other groups share the
batches of dialogues in proportion.
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
