"""The model of the package with two tasks more: two pictures in one, and clips that continue a given first frame.

python -m tuna_jax.train --config=experiments/emoji/more_tasks.py --workdir=runs/emoji_more

It starts from the model in the package and trains all tasks of experiments/emoji/all_tasks.py further, with its rows,
besides the new ones; so what the model can do already is kept. The optimizer is new. The new groups have more than half
of the batches, and the learning rate is half of that training's, since the model knows the other tasks.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    first = Path(__file__).with_name("all_tasks.py")
    config = runpy.run_path(str(first))["get_config"](arg)
    config.steps = 3_600
    config.init_from = "emoji"

    # Fewer items than in all_tasks.py: encoding them takes minutes, and the old tasks are only refreshed.
    config.data.scenes = 12_000
    config.data.edits.count = 12_000
    config.data.clips.count = 10_000

    config.data.share = 0.15
    config.data.edits.share = 0.14
    config.data.clips.share = 0.10
    config.data.dialogues.share = 0.05

    config.data.combinations = ConfigDict()
    config.data.combinations.count = 16_000
    config.data.combinations.rows = 32
    config.data.combinations.length = 76
    config.data.combinations.share = 0.34
    config.data.combinations.source_spread = 0.0

    config.data.continuations = ConfigDict()
    config.data.continuations.rows = 16
    config.data.continuations.length = 96
    config.data.continuations.share = 0.22
    config.data.continuations.source_spread = 0.0

    config.optimizer.learning_rate = 6e-4
    config.optimizer.warmup = 60
    config.optimizer.cosine_tail = 0.6

    config.log_every = 20
    config.sample_every = 0
    config.checkpoint_every = 600
    config.keep = 7
    return config
