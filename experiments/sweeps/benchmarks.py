"""Published benchmarks and questions of files, of every checkpoint of a run.

python -m tuna_jax.evaluate --sweep=experiments/sweeps/benchmarks.py --workdir=runs/mine \
    --sweep.tasks.geneval.prompts=benchmarks/ --sweep.tasks.dpg_bench.prompts=benchmarks/ \
    --sweep.tasks.quiz.file=quiz.jsonl

GenEval (553 prompts, four pictures each) and DPG-Bench (1,065, four in a grid) are drawn into the folders that their
scorers read; `files` in a line of results.jsonl names the folder. `--sweep.tasks.geneval.count=10` is a trial.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    del arg
    config = ConfigDict()
    config.name = "benchmarks"
    config.checkpoints = ()  # All that the run has kept.
    config.follow = False
    config.until = 0
    config.patience = 30.0  # minutes

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

    config.vae = ""  # The run's own, as the tokenizer.
    config.tokenizer = ""

    config.mesh = ConfigDict()
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1
    return config
