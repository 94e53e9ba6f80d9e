"""Which design makes both directions better: one representation in cascade, late fusion, or two that are decoupled?

tuna-jax ablate --study=experiments/ablations/design.py --workdir=runs/ablations/design \\
    --runs=runs/ablations/runs --jobs=2

The arms differ only in `config.model.design` (docs/models.md). Table 7 of arXiv 2512.02014 has the paper's numbers;
understanding is SEED there and descriptions of held-out pictures here, generation is GenEval there and captions here.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    base = runpy.run_path(str(Path(__file__).with_name("base.py")))
    config = base["study"]("Designs", "Which design makes both directions better?", arg)
    config.arms = ConfigDict(
        {
            "cascade": {"model": {"design": "cascade"}},
            "decoupled": {"model": {"design": "decoupled"}},
            "late_fusion": {"model": {"design": "late_fusion"}},
        }
    )
    config.reference = "cascade"
    config.claims = ConfigDict(
        {
            "understanding, cascade against decoupled": {
                "metric": "describe/exact",
                "better": "cascade",
                "worse": "decoupled",
                "paper": "SEED 66.5 against 61.4",
            },
            "understanding, cascade against late fusion": {
                "metric": "describe/exact",
                "better": "cascade",
                "worse": "late_fusion",
                "paper": "SEED 66.5 against 61.7",
            },
            "generation, cascade against decoupled": {
                "metric": "full/right",
                "better": "cascade",
                "worse": "decoupled",
                "paper": "GenEval 79.4 against 78.3",
            },
            "generation, cascade against late fusion": {
                "metric": "full/right",
                "better": "cascade",
                "worse": "late_fusion",
                "paper": "GenEval 79.4 against 75.9",
            },
        }
    )
    return config
