"""The measurement of a mixed load: requests of all kinds at once, and that it finds results that are lost or wrong."""

import dataclasses
import os

import numpy as np
import pytest

from tuna_jax.perf import serving
from tuna_jax.perf.serving import Settings

pytestmark = pytest.mark.usefixtures("any_words")


def test_a_mixed_load_loses_and_changes_nothing(running) -> None:
    settings = Settings(requests=40, clients=12, tokens=6, steps=3)
    requests = serving.requests_of(settings)
    separate = serving.send(running.url, requests, 1)
    memory: dict[int, int] = {}
    process = os.getpid()
    loads = serving.compare(
        *(running.url, requests, separate, settings.clients),
        lambda results: memory.update({results: serving.resident_bytes(process)}),
    )
    assert list(memory) == list(range(41))  # Of the mixed load only.
    counts = {"text": 24, "about an image": 8, "image": 4, "edit": 4, "mixed": 40}
    assert {load.kind: load.requests for load in loads} == counts
    assert [(load.lost, load.wrong) for load in loads] == [(0, 0)] * 5
    measured = serving.Measured(loads, running.server.metrics.compiles, {0: 2**20, 40: 2**21})
    assert "compiled after ready: 0\n" in serving.table(measured)
    assert serving.table(measured).endswith("1 at 0, 2 at 40")
    assert len(serving.record(measured, settings)["loads"]) == 5


def test_a_lost_and_a_wrong_result_are_found(running) -> None:
    requests = serving.requests_of(Settings(requests=10, tokens=4, steps=1))
    separate = serving.send(running.url, requests, 1)
    kinds = [kind for kind, _ in requests]
    text, image = kinds.index("text"), kinds.index("image")
    pixels = separate[image].value
    assert isinstance(pixels, np.ndarray)
    changes = {text: "another answer", image: np.where(pixels > 99, pixels - 2, pixels + 2)}
    for index, value in changes.items():
        separate[index] = dataclasses.replace(separate[index], value=value)
    requests[kinds.index("edit")][1]["path"] = "images/nothing"
    loads = {load.kind: load for load in serving.compare(running.url, requests, separate, 4)}
    assert (loads["text"].wrong, loads["image"].wrong, loads["edit"].lost) == (1, 1, 1)
    assert (loads["mixed"].wrong, loads["mixed"].lost) == (2, 1)
