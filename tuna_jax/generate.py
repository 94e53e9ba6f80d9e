"""Draws pictures from prompts, or answers a question about a picture, with a trained model.

Examples:

    # Pictures; PROMPT_0.png, PROMPT_1.png, ... and a contact sheet go to the output folder:
    python -m tuna_jax.generate --model=runs/demo --output=pictures \\
        --prompt="a red apple on a blue background" --prompt="two cats on a green background"

    # A prompt a line from a file, another seed, more guidance:
    python -m tuna_jax.generate --model=runs/demo --prompts=prompts.txt --seed=3 --guidance=3

    # Text about a picture (any size; it is scaled to the model's):
    python -m tuna_jax.generate --model=runs/demo --image=picture.png --question="what is this?"
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging

_MODEL = flags.DEFINE_string("model", None, "Workdir of a trained run, or its model.safetensors.")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "What to draw; may be given several times.")
_PROMPTS = flags.DEFINE_string("prompts", None, "Text file with a prompt a line.")
_OUTPUT = flags.DEFINE_string("output", "pictures", "Folder that pictures are written to.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise; picture i depends on (seed, i).")
_GUIDANCE = flags.DEFINE_float("guidance", None, "Guidance scale; 1 samples without guidance.")
_POINTS = flags.DEFINE_integer("points", None, "Points of the time grid: one step fewer.")
_SOLVER = flags.DEFINE_enum("solver", None, ["euler", "heun"], "How the flow is followed.")
_IMAGE = flags.DEFINE_string("image", None, "Picture to ask about.")
_QUESTION = flags.DEFINE_string("question", None, "What to ask about --image.")
flags.mark_flag_as_required("model")


def main(arguments: Sequence[str]) -> None:
    """Runs the command."""
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument {arguments[1]!r}; a prompt goes with --prompt=")
    if (_IMAGE.value is None) != (_QUESTION.value is None):
        raise app.UsageError("--image and --question go together")
    prompts = list(_PROMPT.value)
    logging.set_verbosity(logging.WARNING)
    try:
        if _PROMPTS.value is not None:
            lines = Path(_PROMPTS.value).read_text(encoding="utf-8").splitlines()
            prompts += [line.strip() for line in lines if line.strip()]
        if not prompts and _IMAGE.value is None:
            raise app.UsageError(
                "give --prompt= or --prompts=FILE to draw, or --image= and --question="
            )
        _run(prompts)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _run(prompts: list[str]) -> None:
    from tuna_jax.recipes import emoji

    world, params, _ = emoji.load_trained(str(_MODEL.value))
    if _IMAGE.value is not None and _QUESTION.value is not None:
        from tuna_jax.data.pictures import read_picture

        picture = read_picture(_IMAGE.value, world.size)
        print(world.answer(params, picture[None], [_QUESTION.value])[0])
    if not prompts:
        return
    from PIL import Image

    from tuna_jax.evaluation.sheets import contact_sheet

    changes = {"guidance": _GUIDANCE.value, "points": _POINTS.value, "solver": _SOLVER.value}
    samples = dataclasses.replace(
        world.samples, **{name: value for name, value in changes.items() if value is not None}
    )
    pictures = dataclasses.replace(world, samples=samples).draw(params, prompts, _SEED.value)
    folder = Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    for index, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
        path = folder / f"prompt_{index}.png"
        Image.fromarray(picture).save(path)
        print(f"{path}: {prompt}")
    contact_sheet(pictures, prompts).save(folder / "sheet.png")
    print(folder / "sheet.png")


if __name__ == "__main__":
    app.run(main)
