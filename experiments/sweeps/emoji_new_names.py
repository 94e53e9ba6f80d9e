"""The 16 new objects of experiments/emoji/lora.py, on combinations that were held out of training, and the old ones.

python -m tuna_jax.evaluate --workdir=runs/emoji_lora --sweep=experiments/sweeps/emoji_new_names.py
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    del arg
    config = ConfigDict()
    config.name = "emoji_new_names"
    config.checkpoints = ()
    config.follow = False
    config.until = 0
    config.patience = 30.0  # Minutes.

    config.tasks = ConfigDict()
    config.tasks.generate_new = ConfigDict(
        {"kind": "generate_single", "names": "new", "count": 256}
    )
    config.tasks.generate_new_pairs = ConfigDict(
        {"kind": "generate_pairs", "names": "new", "count": 128}
    )
    config.tasks.name_new = ConfigDict(
        {"kind": "answer", "question": "name", "names": "new", "count": 256}
    )
    config.tasks.generate_old = ConfigDict({"kind": "generate_single", "count": 256})
    config.tasks.name_old = ConfigDict({"kind": "answer", "question": "name", "count": 256})

    config.settings = ConfigDict()
    config.settings.guidance = (2.0,)

    config.batch = 64
    config.seed = 7
    config.saved_items = 16

    config.vae = ""  # The VAE and the tokenizer of the run.
    config.tokenizer = ""

    config.mesh = ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1
    return config
