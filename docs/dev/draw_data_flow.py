"""Draws docs/generated/data_flow.png, the figure of docs/architecture.md.

python docs/dev/draw_data_flow.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import FancyBboxPatch

OUTPUT = Path(__file__).parents[1] / "generated" / "data_flow.png"
COLOURS = {
    "data": "#dcebfa",
    "model": "#fde8cf",
    "training": "#dff1dd",
    "inference": "#eadff5",
    "file": "#f2f2f2",
}
WIDTH, HEIGHT = 16.0, 11.6

# name: (x, y, width, height, colour, heading, text); x and y are the lower left corner.
BOXES: dict[str, tuple[float, float, float, float, str, str, str]] = {
    # Training: from files to checkpoints.
    "sources": (
        *(0.3, 6.5, 2.8, 3.95, "data", "data/sources"),
        "JSONL manifests,\nTFDS data sets,\nprecomputed latents\n\nexamples: captions,\nconversations, edits,\nclips",
    ),
    "mixture": (
        *(3.7, 8.55, 3.4, 1.9, "data", "data/mixture"),
        "streams with weights,\nbuckets, schedule:\nbatch n from (seed, n)",
    ),
    "media": (
        *(3.7, 6.5, 3.4, 1.5, "data", "data/media, data/text"),
        "decode, fit, crop;\ntokenize (sequence.py)",
    ),
    "loader": (
        *(7.7, 6.5, 3.6, 1.5, "data", "data/loader"),
        "Batch: tokens, labels, spans,\nis_target; pixels, moments\nor latents",
    ),
    "step": (
        *(7.7, 8.55, 4.4, 1.9, "training", "training/step (one jax.jit)"),
        "noise and t from fold_in(key, step);\nboth losses, gradients, optimizer,\nEMA; state sharded and donated",
    ),
    "checkpoint": (
        *(12.7, 8.55, 3.0, 1.9, "file", "training/checkpoints"),
        "state, data position,\nconfig with run record",
    ),
    "weights": (12.7, 6.5, 3.0, 1.5, "file", "model.safetensors", "averaged parameters\nwith run record"),
    # The model.
    "vae": (0.3, 3.5, 2.4, 1.7, "model", "models/vae", "frozen; pixels to\nlatents and back"),
    "noisy": (3.2, 3.5, 2.2, 1.7, "model", "flow.py", "x_t = t x1 +\n(1 - t) x0"),
    "representation": (
        *(5.9, 4.45, 3.3, 1.1, "model", "models/representation"),
        "encoder, connector",
    ),
    "text": (5.9, 3.1, 3.3, 1.1, "model", "token table", "text ids; t as a time token"),
    "language": (
        *(9.7, 3.5, 2.9, 1.7, "model", "models/language"),
        "causal over text,\nbidirectional within\nan image",
    ),
    "text_head": (13.1, 4.45, 2.6, 1.1, "model", "text head", "logits"),
    "flow_head": (13.1, 3.1, 2.6, 1.1, "model", "models/flow_head", "velocities"),
    # Inference.
    "pipeline": (
        *(0.3, 0.3, 3.3, 1.6, "inference", "inference/pipeline"),
        "Tuna, loaded by its run\nrecord; requests in batches",
    ),
    "prefix": (
        *(4.1, 0.3, 3.3, 1.6, "inference", "generation/prefix_cache"),
        "prompt and input images\nrun once, both branches\nof guidance",
    ),
    "sampler": (
        *(7.9, 0.3, 3.6, 1.6, "inference", "generation/flow_sampler"),
        "all solver steps in one program;\nthen the VAE: images, clips",
    ),
    "decoder": (
        *(12.1, 0.3, 3.6, 1.6, "inference", "generation/text_decoder"),
        "one token at a time with\na KV cache: answers, chat",
    ),
}  # fmt: skip

# from, side, to, side
ARROWS = (
    ("sources", "upper right", "mixture", "left"),
    ("mixture", "bottom", "media", "top"),
    ("media", "right", "loader", "left"),
    ("loader", "top", "step", "above loader"),
    ("step", "right", "checkpoint", "left"),
    ("checkpoint", "bottom", "weights", "top"),
    ("vae", "right", "noisy", "left"),
    ("noisy", "right", "representation", "left"),
    ("representation", "right", "language", "left"),
    ("text", "right", "language", "left"),
    ("language", "right", "text_head", "left"),
    ("language", "right", "flow_head", "left"),
    ("pipeline", "right", "prefix", "left"),
    ("prefix", "right", "sampler", "left"),
)


def _anchor(name: str, side: str) -> tuple[float, float]:
    x, y, width, height = BOXES[name][:4]
    return {
        "left": (x, y + height / 2),
        "right": (x + width, y + height / 2),
        "upper right": (x + width, y + height - 0.95),
        "top": (x + width / 2, y + height),
        "above loader": (x + BOXES["loader"][2] / 2, y),
        "bottom": (x + width / 2, y),
    }[side]


def draw(output: Path = OUTPUT) -> None:
    """Writes the figure as a PNG file."""
    figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT), dpi=80)
    axes.set_xlim(0, WIDTH + 0.15)
    axes.set_ylim(0, HEIGHT)
    axes.axis("off")

    def arrow(points: list[tuple[float, float]], colour: str = "#333333") -> None:
        *corners, last = points
        axes.plot(*zip(*corners, strict=True), color=colour, linewidth=1.5)
        style = {"arrowstyle": "-|>", "color": colour, "lw": 1.5, "shrinkA": 0}
        axes.annotate("", last, corners[-1], arrowprops=style)

    for y, height, title in (
        (6.2, 4.95, "Training: tuna-jax train"),
        (2.85, 3.1, "The model: the same functions in training and inference"),
        (0.1, 2.35, "Inference: tuna-jax generate, tuna_jax.Tuna"),
    ):
        style = "round,pad=0,rounding_size=0.15"
        frame = {"facecolor": "none", "edgecolor": "#999999", "linestyle": "--"}
        axes.add_patch(FancyBboxPatch((0.1, y), WIDTH - 0.25, height, boxstyle=style, **frame))
        top = y + height - 0.1
        left = 4.1 if title.startswith("Inference") else 0.3
        axes.text(left, top, title, va="top", fontsize=12.5, color="#444444", style="italic")
    for x, y, width, height, colour, heading, text in BOXES.values():
        style = "round,pad=0,rounding_size=0.12"
        face = {"facecolor": COLOURS[colour], "edgecolor": "#555555"}
        axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, **face))
        centre = x + width / 2
        axes.text(
            centre, y + height - 0.14, heading, ha="center", va="top", fontsize=11.5, weight="bold"
        )
        middle = y + (height - 0.35) / 2
        axes.text(centre, middle, text, ha="center", va="center", fontsize=11.5, linespacing=1.25)
    for source, out, target, into in ARROWS:
        arrow([_anchor(source, out), _anchor(target, into)])
    arrow([(5.75, 0.3), (5.75, 0.17), (13.9, 0.17), (13.9, 0.3)])  # prefix cache -> text decoder
    arrow([(15.7, 7.25), (16.05, 7.25), (16.05, 2.65), (1.95, 2.65), (1.95, 1.9)], "#777777")
    axes.text(2.07, 2.2, "Tuna.load", fontsize=11.5, color="#555555", va="center")
    orange = "#b35c00"
    arrow([(11.7, 8.55), (11.7, 5.95)], orange)
    arrow([(10.6, 1.9), (10.6, 2.85)], orange)
    arrow([(13.0, 1.9), (13.0, 2.85)], orange)
    axes.text(11.62, 8.28, "runs the model", fontsize=11.5, ha="right", va="center", color=orange)
    axes.text(11.8, 2.2, "run the model", fontsize=11.5, ha="center", va="center", color=orange)
    figure.savefig(output, bbox_inches="tight", pad_inches=0.05)
    plt.close(figure)


if __name__ == "__main__":
    draw()
    print(OUTPUT)
