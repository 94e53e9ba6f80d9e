"""Does a better representation encoder make both directions better?

First the encoders (minutes each):

tuna-jax train --config=experiments/ablations/encoders/contrastive.py --workdir=runs/ablations/contrastive
tuna-jax train --config=experiments/ablations/encoders/self_distilled.py --workdir=runs/ablations/self_distilled

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
    contrastive, self_distilled = (
        f"runs/ablations/{name}/encoder.safetensors" for name in ("contrastive", "self_distilled")
    )
    config.arms = ConfigDict(
        {
            "random": {"model": {"design": "cascade"}},
            "none": {"model": {"design": "latent_only"}},
            "contrastive": {"model": {"design": "cascade"}, "init_encoder": contrastive},
            "self_distilled": {"model": {"design": "cascade"}, "init_encoder": self_distilled},
        }
    )
    config.reference = "random"
    for direction, metric in (("understanding", "name/exact"), ("generation", "full/right")):
        for better, worse, paper in (
            ("contrastive", "random", "every arm of the paper has a pre-trained encoder"),
            ("self_distilled", "random", "every arm of the paper has a pre-trained encoder"),
            ("contrastive", "none", "Tuna-2 wins at scale without an encoder, and needs more data"),
            (
                "contrastive",
                "self_distilled",
                "SigLIP2 against DINOv3: SEED 66.5 against 65.6, GenEval 79.4 against 78.9",
            ),
        ):
            config.claims[f"{direction}, {better} against {worse}"] = ConfigDict(
                {"metric": metric, "better": better, "worse": worse, "paper": paper}
            )
    return config
