"""The understanding side of emoji_all alone: questions about pictures and clips, and conversations.

python -m tuna_jax.train --config=experiments/emoji/understanding_only.py --workdir=runs/emoji_understanding

The same budget is the same steps and the same rows in a batch of each shape: rows that draw in emoji_all ask here, and
the batches of edits, which nobody is asked about, go to the other groups, in their proportions there. So each
of its tasks gets more rows than in the joint model: what sharing costs or gains is measured against a specialist that
has all of the machine's time.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    joint = Path(__file__).with_name("all_tasks.py")
    config = runpy.run_path(str(joint))["get_config"](arg)
    data, clips = config.data, config.data.clips
    data.generation_rows, data.understanding_rows = (
        0,
        data.generation_rows + data.understanding_rows,
    )
    clips.generation_rows, clips.understanding_rows = (
        0,
        clips.generation_rows + clips.understanding_rows,
    )
    data.edits.rows = 0
    config.sample_every = 0  # It does not draw.
    return config
