"""The model in the package learns 16 new objects and their names by LoRA; its other tasks stay as they were.

    python -m tuna_jax.train --config=experiments/emoji/lora.py --workdir=runs/emoji_lora
    python -m tuna_jax.evaluate --workdir=runs/emoji_lora --sweep=experiments/sweeps/emoji_new_names.py
    python -m tuna_jax.evaluate --workdir=runs/emoji_lora

The second command scores the new names (`tuna_jax/emoji/world/nouns.py`), the third one everything that the model could
do before. The mixture is that of all_tasks.py with other numbers of rows: images have old and new objects, and the
other tasks are rehearsed.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    path = Path(__file__).with_name("all_tasks.py")
    config = runpy.run_path(str(path))["get_config"](arg)
    config.steps = 3_000
    config.init_from = "emoji"

    config.lora = ConfigDict()
    config.lora.targets = ("all-linear",)
    config.lora.rank = 16
    config.lora.alpha = 32.0
    config.lora.dropout = 0.0
    # The new names are spelled in bytes, whose rows of the table no earlier text has used.
    config.lora.trained = ("language.embedding",)

    config.data.names = "all"
    config.data.scenes = 12_000
    config.data.length = 64
    config.data.generation_rows = 24
    config.data.understanding_rows = 24
    config.data.questions = ConfigDict(
        {
            "name": 5.0,
            "ground": 0.5,
            "where": 2.0,
            "count": 1.0,
            "relation": 2.0,
            "list": 2.0,
            "describe": 2.0,
        }
    )
    config.data.share = 0.7
    config.data.edits.count = 4_000
    config.data.edits.rows = 16
    config.data.edits.share = 0.12
    config.data.clips.count = 4_000
    config.data.clips.generation_rows = 6
    config.data.clips.understanding_rows = 4
    config.data.clips.share = 0.12
    config.data.dialogues.rows = 8
    config.data.dialogues.length = 160
    config.data.dialogues.share = 0.06

    config.optimizer.algorithm = "adamw"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup = 40
    config.optimizer.cosine_tail = 0.5
    config.optimizer.weight_decay = 0.0
    config.optimizer.ema = 0.99

    config.sample_every = 1_000
    config.checkpoint_every = 500
    config.keep = 2
    return config
