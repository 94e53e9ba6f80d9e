"""Does a better representation encoder make both directions better?

First the encoders (minutes each):

tuna-jax train --config=experiments/ablations/encoders/contrastive.py --workdir=runs/ablations/contrastive
tuna-jax train --config=experiments/ablations/encoders/masked.py --workdir=runs/ablations/masked

tuna-jax ablate --study=experiments/ablations/encoders.py --workdir=runs/ablations/encoders \\
    --runs=runs/ablations/runs --jobs=2
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    base = runpy.run_path(str(Path(__file__).with_name("base.py")))
    config = base["study"](
        "Encoders", "Does a better representation encoder make both directions better?", arg
    )
    contrastive, masked = (
        f"runs/ablations/{name}/encoder.safetensors" for name in ("contrastive", "masked")
    )
    config.arms = ConfigDict(
        {
            "random": {"model": {"design": "cascade"}},
            "none": {"model": {"design": "latent_only"}},
            "contrastive": {"model": {"design": "cascade"}, "init_encoder": contrastive},
            "masked": {"model": {"design": "cascade"}, "init_encoder": masked},
        }
    )
    config.reference = "random"
    for direction, metric in (("understanding", "describe/exact"), ("generation", "full/right")):
        for better, worse, paper in (
            ("contrastive", "random", "every arm of the paper has a pre-trained encoder"),
            ("masked", "random", "every arm of the paper has a pre-trained encoder"),
            ("contrastive", "none", "Tuna-2 wins at scale without an encoder, and needs more data"),
            (
                "contrastive",
                "masked",
                "SigLIP2 against DINOv3: SEED 66.5 against 65.6, GenEval 79.4 against 78.9",
            ),
        ):
            config.claims[f"{direction}, {better} against {worse}"] = ConfigDict(
                {"metric": metric, "better": better, "worse": worse, "paper": paper}
            )
    return config
