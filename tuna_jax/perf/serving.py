"""Measures the server under a mixed load: answers, answers about images, images and edits, from many clients at once.

Each request is first sent alone, one after another, and then all are sent by many clients. Every result must be that of
the same request alone: texts to the bit, pixels to 1 of 255 (latents to 1e-5).
"""

from __future__ import annotations

import base64
import collections
import concurrent.futures
import dataclasses
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tuna_jax.perf import harness, startup

_KINDS = {"text": 6, "about an image": 2, "image": 1, "edit": 1}
"""Kinds of requests, and how many of ten are of each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the measurement.

    Attributes:
      model: as for `tuna_jax.serve --model`; empty: an emoji model with random weights.
      requests: number of requests.
      clients: clients at once.
      tokens: the largest number of tokens of an answer.
      steps: solver steps of an image; 0: the model's own.
    """

    model: str = ""
    requests: int = 500
    clients: int = 64
    tokens: int = 16
    steps: int = 0

    def __post_init__(self) -> None:
        harness.at_least(self, requests=1, clients=1, tokens=1)
        if self.model and not Path(self.model).exists():
            raise FileNotFoundError(f"model is {self.model}, and there is no such path")


@dataclasses.dataclass(frozen=True)
class Load:
    """The requests of one kind.

    Attributes:
      kind: of the requests.
      requests: how many there were.
      lost, wrong: how many had no result, and another one than alone.
      alone, together: requests per second one after another, and by all clients.
      p50, p95: seconds of a request among the others.
    """

    kind: str
    requests: int
    lost: int
    wrong: int
    alone: float
    together: float
    p50: float
    p95: float


@dataclasses.dataclass(frozen=True)
class Measured:
    """The loads of one kind each, then the mixed one, and programs that were compiled meanwhile."""

    loads: list[Load]
    compiles: int
    memory: tuple[int, int]


def measure(settings: Settings, folder: Path) -> Measured:
    """Starts a server in this process, and sends it requests."""
    import logging

    from tuna_jax.inference.pipeline import Tuna
    from tuna_jax.serving.app import Server
    from tuna_jax.serving.run import InThread
    from tuna_jax.serving.settings import Settings as ServerSettings
    from tuna_jax.utils import compile_cache

    compile_cache.enable()
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    path = settings.model or str(startup._random_emoji(folder))
    most = max(256, settings.requests)
    server = Server(Tuna.load(path), ServerSettings(tasks=("chat", "image", "edit"), queue=most))
    with InThread(server) as running:
        requests = _requests(settings)
        alone = [_send(running.url, [request], 1)[0] for request in requests]
        before = _memory()
        loads = []
        for kind in (*_KINDS, "mixed"):
            chosen = [i for i, request in enumerate(requests) if kind in (request[0], "mixed")]
            begin = time.perf_counter()
            results = _send(running.url, [requests[i] for i in chosen], settings.clients)
            seconds = time.perf_counter() - begin
            loads.append(_compare(kind, [alone[i] for i in chosen], results, seconds))
        return Measured(loads, server.metrics.compiles, (before, _memory()))


def _memory() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def _requests(settings: Settings) -> list[tuple[str, dict[str, Any]]]:
    """(kind, request) each, in an order that is mixed and always the same."""
    random = np.random.default_rng(0)
    kinds = [kind for kind, share in _KINDS.items() for _ in range(share)]
    steps = {"num_inference_steps": settings.steps} if settings.steps else {}
    requests: list[tuple[str, dict[str, Any]]] = []
    for number in range(settings.requests):
        kind = kinds[number % 10]
        picture = random.integers(0, 256, (64, 64, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        content: list[dict[str, Any]] = [{"type": "text", "text": f"what is number {number}?"}]
        if kind == "about an image":
            url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        if kind in ("text", "about an image"):
            values = {"messages": [{"role": "user", "content": content}], "seed": number}
            values |= {"max_tokens": settings.tokens, "temperature": 1.0 * (number % 2)}
            requests.append((kind, {"path": "chat/completions", "json": values}))
        elif kind == "image":
            values = {"prompt": f"a dog {number % 7}", "seed": number, **steps}
            requests.append((kind, {"path": "images/generations", "json": values}))
        else:
            data = {"prompt": "make it blue", "seed": str(number)}
            data |= {key: str(value) for key, value in steps.items()}
            files = {"image": ("a.png", file.getvalue())}
            requests.append((kind, {"path": "images/edits", "data": data, "files": files}))
    order = random.permutation(len(requests))
    return [requests[i] for i in order]


@dataclasses.dataclass(frozen=True)
class _Result:
    value: str | np.ndarray | None
    seconds: float


def _send(url: str, requests: Sequence[tuple[str, dict[str, Any]]], clients: int) -> list[_Result]:
    """Sends requests from so many clients; their results in order."""
    import httpx

    limits = httpx.Limits(max_connections=clients)
    with (
        httpx.Client(base_url=f"{url}/v1/", timeout=600, limits=limits) as client,
        concurrent.futures.ThreadPoolExecutor(clients) as threads,
    ):

        def send(request: tuple[str, dict[str, Any]]) -> _Result:
            values = dict(request[1])
            begin = time.perf_counter()
            response = client.post(values.pop("path"), **values)
            return _Result(_value(response), time.perf_counter() - begin)

        return list(threads.map(send, requests))


def _value(response: Any) -> str | np.ndarray | None:
    """The text or the pixels of a response; None if it has none."""
    if response.status_code != 200:
        return None
    values = response.json()
    if "choices" in values:
        return values["choices"][0]["message"]["content"]
    content = base64.b64decode(values["data"][0]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(content)))


def _same(value: str | np.ndarray | None, wanted: str | np.ndarray | None) -> bool:
    if isinstance(value, np.ndarray) and isinstance(wanted, np.ndarray):
        return int(np.abs(value.astype(int) - wanted.astype(int)).max()) <= 1
    return isinstance(value, str) and value == wanted


def _compare(
    kind: str, alone: Sequence[_Result], together: Sequence[_Result], seconds: float
) -> Load:
    times = [result.seconds for result in together]
    lost = [result.value is None for result in together]
    same = [_same(result.value, one.value) for result, one in zip(together, alone, strict=True)]
    counts = collections.Counter(zip(lost, same, strict=True))
    return Load(
        kind,
        len(together),
        lost=sum(lost),
        wrong=counts[False, False],
        alone=len(alone) / sum(result.seconds for result in alone),
        together=len(together) / seconds,
        p50=float(np.quantile(times, 0.5)),
        p95=float(np.quantile(times, 0.95)),
    )


def table(measured: Measured) -> str:
    """The loads as a table for a terminal."""
    lines = [
        f"{'requests':<22}{'lost':>6}{'wrong':>7}{'alone/s':>10}{'together/s':>12}{'ratio':>8}"
        f"{'p50 s':>9}{'p95 s':>9}"
    ]
    for load in measured.loads:
        lines.append(
            f"{f'{load.requests} {load.kind}':<22}{load.lost:>6}{load.wrong:>7}{load.alone:>10.2f}"
            f"{load.together:>12.2f}{load.together / load.alone:>8.2f}{load.p50:>9.3f}{load.p95:>9.3f}"
        )
    before, after = (f"{size / 2**20:.0f}" for size in measured.memory)
    lines.append(
        f"programs compiled after ready: {measured.compiles}; memory {before} -> {after} MiB"
    )
    return "\n".join(lines)


def record(measured: Measured, settings: Settings) -> dict[str, Any]:
    """The loads and settings, for JSON."""
    return harness.record([], settings) | dataclasses.asdict(measured)
