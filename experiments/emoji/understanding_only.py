"""Only the understanding tasks of all_tasks.py: questions about images and clips, and dialogues.

python -m tuna_jax.train --config=experiments/emoji/understanding_only.py --workdir=runs/emoji_understanding

The budget equals that of all_tasks.py: the same number of steps, and the same number of rows per batch of each shape.
Generation rows of all_tasks.py are question rows here, and the other groups share the batches of edits in proportion.
Each task has more rows than in the joint model, so joint training is compared with a specialist that has the same
compute.
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
    config.sample_every = 0  # The model does not generate images.
    return config
