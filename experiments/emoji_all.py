"""All five abilities of the emoji world in one model: draws, edits, makes clips, answers about both, and converses.

python -m tuna_jax.train --config=experiments/emoji_all.py --workdir=runs/emoji_all

The demo's settings (experiments/emoji.py says why), with three groups of batches more.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    del arg
    config = ConfigDict()
    config.kind = "tuna"
    # 3.3 steps a second on two cores: an hour, and the latents of clips before that.
    config.steps = 12_000
    config.seed = 0
    config.vae = (
        ""  # The one that ships with the package; a clip's frames go through it one by one.
    )

    config.model = ConfigDict()
    config.model.preset = "emoji"

    config.data = ConfigDict()
    config.data.scenes = 24_000
    config.data.size = 64
    config.data.seed = 0
    config.data.length = 44
    config.data.draw_rows = 16
    config.data.understand_rows = 8
    config.data.caption_dropout = 0.1
    config.data.draw_spread = 0.0
    config.data.layouts = ConfigDict({"single": 0.3, "pair": 0.4, "groups": 0.1, "count": 0.2})
    # Finding what a word means comes last, here and in edits: more of the questions that ask for it than the demo has.
    config.data.questions = ConfigDict(
        {
            "name": 4.0,
            "ground": 1.0,
            "where": 3.0,
            "count": 1.0,
            "relation": 1.5,
            "list": 1.5,
            "describe": 1.5,
        }
    )
    config.data.vocabulary = "emoji_all"
    config.data.threads = 1
    config.data.share = 0.35

    config.data.edits = ConfigDict()
    config.data.edits.count = 24_000
    config.data.edits.rows = 16
    config.data.edits.length = 52
    config.data.edits.share = 0.3
    # After 3,400 steps at 35, 20, 25 and 20 %: 41, 94, 97 and 14 % right.
    config.data.edits.kinds = ConfigDict(
        {"replace": 0.4, "recolour": 0.1, "move": 0.15, "remove": 0.35}
    )

    config.data.clips = ConfigDict()
    config.data.clips.count = 16_000
    config.data.clips.frames = 4
    config.data.clips.draw_rows = 8
    config.data.clips.understand_rows = 4
    config.data.clips.length = 84
    config.data.clips.share = 0.25

    config.data.dialogues = ConfigDict()
    config.data.dialogues.rows = 8
    config.data.dialogues.length = 132
    config.data.dialogues.share = 0.1

    config.optimizer = ConfigDict()
    config.optimizer.algorithm = "muon"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup = 60
    config.optimizer.cosine_tail = 0.4
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.optimizer.frozen = ()
    config.optimizer.ema = 0.998

    config.flow_weight = 1.0
    config.text_weight = 0.2
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
    config.samples.points = 16
    config.samples.guidance = 2.0
    config.samples.shift = 3.0

    config.log_every = 20
    config.sample_every = 2_000
    config.checkpoint_every = 1_000
    config.keep = 12  # All of them: `tuna_jax.evaluate --curve` draws scores over steps.
    config.asynchronous = True
    return config
