"""All tasks of the emoji world in one model: image and clip generation, editing, questions about both, and dialogues.

python -m tuna_jax.train --config=experiments/emoji/all_tasks.py --workdir=runs/emoji_all

The settings of the demo (experiments/emoji/demo.py explains them) with three more groups of batches. The model learns
last to find the named one of two objects, which "where is the crown?", "remove the crown" and "replace the crown"
require. With only such questions it took more than 50,000 of them at half the demo's learning rate, and more at the
full rate. Therefore there are many more question rows, the rate is lower and decays over half of the run, and the text
loss has the same weight as the flow loss.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    del arg
    config = ConfigDict()
    config.kind = "emoji"
    # An earlier mixture with the same number of rows took 80 minutes on two cores, after encoding the latents.
    config.steps = 12_000
    config.seed = 0
    config.vae = ""  # The VAE of the package; it encodes clips frame by frame.

    config.model = ConfigDict()
    config.model.preset = "emoji"

    config.data = ConfigDict()
    config.data.scenes = 24_000
    config.data.size = 64
    config.data.seed = 0
    config.data.length = 44
    config.data.generation_rows = 12
    config.data.understanding_rows = 48
    config.data.caption_dropout = 0.1
    config.data.generation_spread = 0.0
    config.data.layouts = ConfigDict({"single": 0.25, "pair": 0.5, "groups": 0.1, "count": 0.15})
    config.data.questions = ConfigDict(
        {
            "name": 3.0,
            "ground": 0.7,
            "where": 6.0,
            "count": 1.5,
            "relation": 2.0,
            "list": 1.0,
            "describe": 1.0,
        }
    )
    config.data.vocabulary = "emoji_all"
    config.data.threads = 1
    config.data.share = 0.38

    config.data.edits = ConfigDict()
    config.data.edits.count = 24_000
    config.data.edits.rows = 32
    config.data.edits.length = 52
    config.data.edits.share = 0.33
    config.data.edits.source_spread = 0.0
    # Moving is learned first. Recolouring is soon right, but it keeps objects unchanged only after many rows.
    config.data.edits.kinds = ConfigDict(
        {"replace": 0.34, "recolour": 0.24, "move": 0.12, "remove": 0.3}
    )

    config.data.clips = ConfigDict()
    config.data.clips.count = 16_000
    config.data.clips.frames = 4
    config.data.clips.generation_rows = 12
    config.data.clips.understanding_rows = 6
    config.data.clips.length = 84
    config.data.clips.share = 0.23
    # Turned objects are the hardest to generate.
    config.data.clips.motions = ConfigDict(
        {
            "right": 1.0,
            "left": 1.0,
            "up": 1.0,
            "down": 1.0,
            "grow": 1.0,
            "shrink": 1.0,
            "turn left": 2.5,
            "turn right": 2.5,
        }
    )

    config.data.dialogues = ConfigDict()
    config.data.dialogues.rows = 12
    config.data.dialogues.length = 132
    config.data.dialogues.share = 0.06

    config.optimizer = ConfigDict()
    config.optimizer.algorithm = "muon"
    config.optimizer.learning_rate = 1.2e-3
    config.optimizer.warmup = 60
    config.optimizer.cosine_tail = 0.5
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.optimizer.frozen = ()
    config.optimizer.ema = 0.998

    config.flow_weight = 1.0
    config.text_weight = 1.0
    config.time = ConfigDict()
    config.time.mean = -1.2
    config.time.std = 1.0
    config.time.shift = False

    config.mesh = ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.context = 1
    config.mesh.tensor = 1

    config.samples = ConfigDict()
    config.samples.count = 24
    # More steps take more time and keep slightly less of an edited image unchanged.
    config.samples.steps = 9
    config.samples.guidance = 2.0
    config.samples.shift = 3.0

    # Evaluation during training, as in a sweep; 0 turns it off. Each evaluation takes about a minute on two cores.
    config.evaluate = ConfigDict()
    config.evaluate.every = 0
    config.evaluate.tasks = ConfigDict(
        {
            "generate_pairs": {"count": 32},
            "edit": {"count": 32},
            "where": {"kind": "answer", "question": "where", "count": 64},
        }
    )
    config.evaluate.settings = ConfigDict({"guidance": (2.0,)})
    config.evaluate.batch = 32
    config.evaluate.seed = 7
    config.evaluate.saved_items = 8

    config.log_every = 20
    config.sample_every = 2_000
    config.checkpoint_every = 1_000
    config.keep = (
        12  # All checkpoints: `tuna-jax evaluate --learning_curve` plots scores over steps.
    )
    config.asynchronous = True
    return config
