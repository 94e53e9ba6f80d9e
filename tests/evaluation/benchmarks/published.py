"""Prompts of every benchmark in the published formats, and noise that depends on a seed. Read with runpy."""

import numpy as np
from PIL import Image

from tuna_jax.evaluation.benchmarks.generate import Plan

SIDE, FRAMES = 32, 5
PLAN = Plan(sizes=((SIDE, SIDE),), frames=1)
CLIPS = Plan(sizes=((SIDE, SIDE),), frames=FRAMES)

GENEVAL = [
    {
        "tag": "single_object",
        "include": [{"class": "bench", "count": 1}],
        "prompt": "a photo of a bench",
    },
    {
        "tag": "position",
        "include": [
            {"class": "bed", "count": 1},
            {"class": "cow", "count": 1, "position": ["left of", 0]},
        ],
        "prompt": "a photo of a cow left of a bed",
    },
]
ONEIG = [
    ("Portrait", "000", "a man"),
    ("Portrait", "001", "a woman"),
    ("Text_Rendering", "000", "'x'"),
]
VBENCH = [
    {"prompt_en": "In a still frame, a stop sign", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a cat, oil painting", "dimension": ["appearance_style"]},
    {"prompt_en": "a cat, oil painting", "dimension": ["temporal_style"]},
]
IMGEDIT = {
    "1082": {"id": "animal/a.jpg", "prompt": "Change the shell.", "edit_type": "adjust"},
    "97": {"id": "daily object/b.jpg", "prompt": "Add a chandelier.", "edit_type": "add"},
}
GEDIT = [
    ("k1", "style_change", "en", (60, 40)),
    ("k1", "style_change", "cn", (60, 40)),
    ("k2", "ps_human", "en", (30, 50)),
]


def picture(seed: int, size: tuple[int, int] = (48, 48)) -> Image.Image:
    """Noise of (width, height)."""
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    )


def noise(prompts, seeds, sources, size):
    """Samples that depend only on the prompt, the seed and the source; noise, so that no two are equal."""
    samples = []
    for index, (prompt, pair) in enumerate(zip(prompts, seeds, strict=True)):
        random = np.random.default_rng([*pair, *prompt.encode()])
        sample = random.integers(0, 256, (*size, 3), np.uint8)
        samples.append(sample if sources is None else sample // 2 + sources[index] // 2)
    return np.stack(samples)


def noise_clips(prompts, seeds, sources, size):
    """As `noise`, with frames."""
    stills = noise(prompts, seeds, sources, size)
    return np.stack([np.roll(stills, frame, axis=2) for frame in range(FRAMES)], axis=1)
