"""Generation and understanding of every checkpoint of an all_tasks.py run, at two guidance scales.

python -m tuna_jax.evaluate --sweep=experiments/sweeps/emoji.py --workdir=runs/emoji_all

`--sweep.checkpoints=4000,8000` selects checkpoints; `--sweep.follow=True` waits for those of a run that is still
training. On two cores a checkpoint takes about a minute.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    del arg
    config = ConfigDict()
    config.name = "emoji"
    config.checkpoints = ()  # All checkpoints of the run.
    config.follow = False
    config.until = 0
    config.patience = 30.0  # Minutes.

    config.tasks = ConfigDict()
    config.tasks.generate_pairs = ConfigDict({"count": 32})
    config.tasks.edit = ConfigDict({"count": 32})
    config.tasks.naming = ConfigDict({"kind": "answer", "question": "name", "count": 64})
    config.tasks.where = ConfigDict({"kind": "answer", "question": "where", "count": 64})

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
