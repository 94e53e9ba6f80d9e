"""Pixels or latents, and with or without an encoder: Tuna, Tuna-R and Tuna-2 at one budget.

tuna-jax ablate --study=experiments/ablations/pixels.py --workdir=runs/ablations/pixels \\
    --runs=runs/ablations/runs --jobs=2

Predictions of arXiv 2604.24763: Tuna-2 wins understanding, Tuna generation. The order of the pixels that a token
predicts and the hidden tokens of training have no numbers in the paper; patches are expected to be easier than strips.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    base = runpy.run_path(str(Path(__file__).with_name("base.py")))
    config = base["study"](
        "Pixels or latents", "Pixels or latents, and with or without a representation encoder?", arg
    )
    pixels = {
        "vae": "",
        "time": {"mean": -0.8, "std": 0.8},
        "samples": {"shift": 1.0},
    }
    hidden = {"masking": {"low": -0.7, "high": 0.3}}
    config.arms = ConfigDict(
        {
            "tuna": {"model": {"design": "cascade"}},
            "tuna_r": {"model": {"preset": "tuna_r_emoji"}, **pixels},
            "tuna_2": {"model": {"preset": "tuna_2_emoji"}, **pixels},
            "tuna_2_raster": {
                "model": {"preset": "tuna_2_emoji", "pixels": {"order": "raster"}},
                **pixels,
            },
            "tuna_2_hidden": {"model": {"preset": "tuna_2_emoji"}, **pixels, **hidden},
        }
    )
    config.reference = "tuna"
    config.claims = ConfigDict(
        {
            "understanding, without VAE and encoder": {
                "metric": "describe/exact",
                "better": "tuna_2",
                "worse": "tuna",
                "paper": "Tuna-2 wins understanding (OCRBench 79.7)",
            },
            "generation, with a VAE": {
                "metric": "full/right",
                "better": "tuna",
                "worse": "tuna_2",
                "paper": "GenEval 90 against 87",
            },
            "understanding, without encoder": {
                "metric": "describe/exact",
                "better": "tuna_2",
                "worse": "tuna_r",
                "paper": "at scale; with less data Tuna-R learns faster",
            },
            "patches are easier than strips": {
                "metric": "full/right",
                "better": "tuna_2",
                "worse": "tuna_2_raster",
                "paper": "no numbers; ours",
            },
            "hidden tokens help understanding": {
                "metric": "describe/exact",
                "better": "tuna_2_hidden",
                "worse": "tuna_2",
                "paper": "a regulariser for both directions; no numbers",
            },
        }
    )
    return config
