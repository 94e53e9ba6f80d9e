"""Writes the model in the package, `tuna_jax/assets/emoji/`, from a training run, and measures what was written.

    python -m tuna_jax.emoji.ship_model --workdir=runs/emoji_all

The parameters are stored in bfloat16 and loaded in float32: half the bytes. `scores.json` has the scores of the
stored file; the report is written to `--output`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from tuna_jax.inference import loading
from tuna_jax.training import weights_file
from tuna_jax.utils import shipped

LIMIT = 8 * 10**6  # Bytes of the folder: it is part of every installation.


def write(workdir: str | Path, folder: Path) -> Path:
    """The final model of a run, in bfloat16 with its run record, as `model.safetensors` in a folder.

    Raises:
      FileNotFoundError: the run has not ended.
      ValueError: the file would be larger than the limit.
    """
    params, settings, step = weights_file.load_model(workdir)
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(half))
    if size > LIMIT:
        raise ValueError(
            f"the model in {workdir} has {size:,} bytes in bfloat16; {LIMIT:,} is the limit"
        )
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / weights_file.MODEL_FILE
    weights_file.export_model(file, half, settings, step, loaded_dtype="float32")
    loading.load(folder)
    return file


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the model and its scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="a run of experiments/emoji/all_tasks.py")
    parser.add_argument("--output", default="runs/emoji_model", help="folder of the report")
    options = parser.parse_args(arguments)
    folder = shipped.MODELS["emoji"]
    print(write(options.workdir, folder))
    command = ["-m", "tuna_jax.evaluate", "--model=emoji", f"--output={options.output}"]
    subprocess.run([sys.executable, *command], check=True)
    print(shutil.copyfile(Path(options.output, "summary.json"), folder / "scores.json"))


if __name__ == "__main__":
    main()
