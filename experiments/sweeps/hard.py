"""Both directions of every checkpoint of a hard.py run: accuracies, answers, diversity and distance.

python -m tuna_jax.evaluate --sweep=experiments/sweeps/hard.py --workdir=runs/emoji_hard

WORLD and SPLITS are those of experiments/emoji/hard.py. A run with other `config.data.nouns`, `config.data.colours` or
`config.data.layouts` requires a copy of this file with its own: docs/hard_world.md lists the splits of each layout.
Tasks can be shortened, as with `--sweep.tasks.full.count=16`.
"""

from ml_collections import ConfigDict

WORLD = {"nouns": 12, "colours": 4}
SPLITS = ()  # All.


def get_config(arg: str = "") -> ConfigDict:
    del arg
    config = ConfigDict()
    config.name = "hard"
    config.checkpoints = ()  # All checkpoints of the run.
    config.follow = False
    config.until = 0
    config.patience = 30.0  # Minutes.

    held_out = WORLD | {"splits": SPLITS}
    generate = held_out | {"kind": "hard_generate", "count": 64}
    answer = held_out | {"kind": "hard_answer", "count": 64}
    config.tasks = ConfigDict()
    config.tasks.full = ConfigDict(generate | {"caption": "full"})
    config.tasks.partial = ConfigDict(generate | {"caption": "partial"})
    config.tasks.relation = ConfigDict(generate | {"caption": "relation"})
    config.tasks.diversity = ConfigDict(WORLD | {"kind": "hard_diversity", "count": 8})
    config.tasks.distance = ConfigDict(
        held_out | {"kind": "hard_distance", "count": 2, "pictures": 64}
    )
    config.tasks.name = ConfigDict(answer | {"question": "name"})
    config.tasks.where = ConfigDict(answer | {"question": "where"})
    config.tasks.related = ConfigDict(answer | {"question": "relation"})
    config.tasks.describe = ConfigDict(answer | {"question": "describe"})

    config.settings = ConfigDict()
    config.settings.guidance = (1.0, 2.0)

    config.batch = 32
    config.seed = 7
    config.saved_items = 8

    config.vae = ""  # The VAE and the tokenizer of the run.
    config.tokenizer = ""

    config.mesh = ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1
    return config
