"""Does training both directions together help each of them?

tuna-jax ablate --study=experiments/ablations/one_sided.py --workdir=runs/ablations/one_sided \\
    --runs=runs/ablations/runs --jobs=2

A one-sided arm has the same number of rows of its own direction in each batch, and none of the other.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    base = runpy.run_path(str(Path(__file__).with_name("base.py")))
    config = base["study"](
        "Joint or one-sided", "Does training both directions together help each of them?", arg
    )
    understanding = {"data": {"generation_rows": 0}}
    generation = {"data": {"understanding_rows": 0}}
    config.arms = ConfigDict(
        {
            "cascade": {"model": {"design": "cascade"}},
            "cascade_understanding": {"model": {"design": "cascade"}, **understanding},
            "late_fusion_understanding": {"model": {"design": "late_fusion"}, **understanding},
            "semantic_only": {"model": {"design": "semantic_only"}, **understanding},
            "cascade_generation": {"model": {"design": "cascade"}, **generation},
            "late_fusion_generation": {"model": {"design": "late_fusion"}, **generation},
            "latent_only": {"model": {"design": "latent_only"}, **generation},
        }
    )
    for arm in ("cascade_understanding", "late_fusion_understanding", "semantic_only"):
        config.arm_tasks[arm] = base["UNDERSTANDING"]
    for arm in ("cascade_generation", "late_fusion_generation", "latent_only"):
        config.arm_tasks[arm] = base["GENERATION"]
    config.reference = "cascade"
    config.claims = ConfigDict(
        {
            "joint training helps understanding": {
                "metric": "describe/exact",
                "better": "cascade",
                "worse": "cascade_understanding",
                "paper": "SEED 66.5 against 62.9 (but MME 1361 against 1386)",
            },
            "joint training helps generation": {
                "metric": "full/right",
                "better": "cascade",
                "worse": "cascade_generation",
                "paper": "GenEval 79.4 against 77.8",
            },
            "understanding only, cascade against late fusion": {
                "metric": "describe/exact",
                "better": "cascade_understanding",
                "worse": "late_fusion_understanding",
                "paper": "SEED 62.9 against 62.1",
            },
            "understanding only, cascade against the encoder": {
                "metric": "describe/exact",
                "better": "cascade_understanding",
                "worse": "semantic_only",
                "paper": "SEED 62.9 against 62.9, MMMU 37.6 against 38.2: no difference is predicted",
            },
            "generation only, cascade against latents": {
                "metric": "full/right",
                "better": "cascade_generation",
                "worse": "latent_only",
                "paper": "GenEval 77.8 against 77.3",
            },
            "generation only, cascade against late fusion": {
                "metric": "full/right",
                "better": "cascade_generation",
                "worse": "late_fusion_generation",
                "paper": "GenEval 77.8 against 76.2",
            },
        }
    )
    return config
