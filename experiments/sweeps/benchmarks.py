"""Published benchmarks, and questions from a file, for every checkpoint of a run.

python -m tuna_jax.evaluate --sweep=experiments/sweeps/benchmarks.py --workdir=runs/mine \
    --sweep.tasks.geneval.prompts=benchmarks/ --sweep.tasks.dpg_bench.prompts=benchmarks/ \
    --sweep.tasks.quiz.file=quiz.jsonl

The images of GenEval (553 prompts, four images each) and DPG-Bench (1,065 prompts, four images in a grid) are written
to the folders that their scorers read; `files` in a line of results.jsonl is the folder.
`--sweep.tasks.geneval.count=10` generates only 10 prompts.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    del arg
    config = ConfigDict()
    config.name = "benchmarks"
    config.checkpoints = ()  # All checkpoints of the run.
    config.follow = False
    config.until = 0
    config.patience = 30.0  # Minutes.

    config.tasks = ConfigDict()
    for name in ("geneval", "dpg_bench"):
        task = {"kind": "benchmark", "benchmark": name, "prompts": "benchmarks/", "count": 0}
        config.tasks[name] = ConfigDict(task)
    quiz = {"kind": "questions", "file": "quiz.jsonl", "style": "multiple_choice", "count": 0}
    config.tasks.quiz = ConfigDict(quiz)

    config.settings = ConfigDict()
    config.settings.guidance = (3.0,)

    config.batch = 32
    config.seed = 0
    config.saved_items = 16

    config.vae = ""  # The VAE and the tokenizer of the run.
    config.tokenizer = ""

    config.mesh = ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1
    return config
