"""Curves of a sweep: nothing is cut off, however many settings there are."""

import io

import numpy as np
import pytest
from PIL import Image

from tuna_jax.sweeps import plots


def rows(settings, metrics, steps=(100, 200, 300)):
    listed = []
    for i in range(settings):
        applied = {"guidance": 1.0 + i, "guidance_interval": [0.1, 0.9]} if settings > 1 else {}
        for step in steps:
            value = 0.1 + 0.02 * i + step / 1000
            score = {"value": value, "ci95": [value - 0.05, value + 0.05], "chance": 0.1}
            scores = {f"metric {m}": score for m in range(metrics)}
            listed.append({"run": "r", "step": step, "applied": applied, "scores": scores})
    return listed


@pytest.mark.parametrize("metrics", [1, 3, 5])
@pytest.mark.parametrize("settings", [1, 4, 9])
def test_nothing_touches_the_border(settings, metrics):
    content = plots.over_steps(rows(settings, metrics))
    assert content is not None
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    border = [pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]]
    assert all((edge == 255).all() for edge in border)


def test_one_step_has_no_curve():
    assert plots.over_steps(rows(2, 1, steps=(100,))) is None
