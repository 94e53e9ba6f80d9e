"""Measures the server under a mixed load: answers, answers about images, images and edits, from many clients at once.

Each request is first sent by itself, one after another, and then all are sent by many clients. Every result must equal
that of the same request by itself: texts to the bit, pixels to 1 of 255 (latents agree to 1e-5).
"""

from __future__ import annotations

import base64
import collections
import concurrent.futures
import contextlib
import dataclasses
import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tuna_jax.perf import harness
from tuna_jax.utils import shipped

_KINDS = {"text": 6, "about an image": 2, "image": 1, "edit": 1}
"""Kinds of requests, and how many of ten are of each."""

Request = tuple[str, dict[str, Any]]
"""Its kind, and the arguments of `httpx`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the measurement.

    Attributes:
      model: as for `tuna_jax.serve --model`.
      requests: number of requests.
      clients: clients at once.
      tokens: the largest number of tokens of an answer.
      steps: solver steps of an image; 0: the model's own.
    """

    model: str = "emoji"
    requests: int = 500
    clients: int = 64
    tokens: int = 16
    steps: int = 0

    def __post_init__(self) -> None:
        harness.at_least(self, requests=1, clients=1, tokens=1)
        if not shipped.model_path(self.model).exists():
            raise FileNotFoundError(f"model is {self.model}, and there is no such path")


@dataclasses.dataclass(frozen=True)
class Load:
    """The requests of one kind.

    Attributes:
      kind: of the requests.
      requests: how many there were.
      lost, wrong: how many had no result, and another one than by itself.
      sequential, concurrent: requests per second one after another, and by all clients.
      p50, p95: seconds of a request among the others.
    """

    kind: str
    requests: int
    lost: int
    wrong: int
    sequential: float
    concurrent: float
    p50: float
    p95: float


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
      loads: those of one kind each, then the mixed one.
      compiles: programs that were compiled meanwhile.
      memory: bytes of the server in memory by the number of results of the mixed load: none, each tenth, all.
    """

    loads: list[Load]
    compiles: int
    memory: dict[int, int]


def measure(settings: Settings, folder: Path) -> Measured:
    """Starts a server, a process of its own, and sends it requests from this one."""
    del folder
    with _started(settings) as (url, process):
        requests = requests_of(settings)
        separate = send(url, requests, 1)
        memory: dict[int, int] = {}
        tenth = -(-settings.requests // 10)

        def sample(results: int) -> None:
            if results % tenth == 0 or results == settings.requests:
                memory[results] = resident_bytes(process)

        loads = compare(url, requests, separate, settings.clients, sample)
        return Measured(loads, _compiles(url), memory)


@contextlib.contextmanager
def _started(settings: Settings) -> Iterator[tuple[str, int]]:
    """The address and the process id of a server that is ready; it is stopped at the end.

    Raises:
      ValueError: it does not start; the last line that it printed is in the message.
    """
    most = max(256, settings.requests)
    command = [sys.executable, "-m", "tuna_jax.serve", f"--model={settings.model}", "--port=0"]
    command += ["--tasks=chat,image,edit", f"--queue={most}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        line = ""
        try:
            for line in process.stdout:
                if line.startswith("ready: "):
                    break
            else:
                raise ValueError(f"the server did not start: {line.strip()}")
            drain = threading.Thread(target=process.stdout.read, daemon=True)
            drain.start()
            yield line.split()[1], process.pid
        finally:
            process.terminate()
            process.wait()


def resident_bytes(process: int) -> int:
    """Bytes of a process that are in memory."""
    with open(f"/proc/{process}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def _compiles(url: str) -> int:
    """Programs that a server has compiled since it was ready."""
    import httpx

    for line in httpx.get(f"{url}/metrics").text.split("\n"):
        if line.startswith("tuna_compiles_after_ready"):
            return int(float(line.split()[1]))
    raise ValueError("the server does not report what it compiled")


def compare(
    url: str,
    requests: Sequence[Request],
    separate: Sequence[Result],
    clients: int,
    on_result: Callable[[int], None] = lambda results: None,
) -> list[Load]:
    """Sends the requests of each kind, then all, from `clients` threads, and compares their results with `separate`.

    Args:
      url: of the server.
      requests: what is sent.
      separate: the results of the same requests by themselves.
      clients: number of threads.
      on_result: called with the number of results of the mixed load, from 0.
    """
    loads = []
    for kind in (*_KINDS, "mixed"):
        chosen = [i for i, request in enumerate(requests) if kind in (request[0], "mixed")]
        if chosen:
            count = on_result if kind == "mixed" else lambda results: None
            begin = time.perf_counter()
            results = send(url, [requests[i] for i in chosen], clients, count)
            seconds = time.perf_counter() - begin
            loads.append(_load(kind, [separate[i] for i in chosen], results, seconds))
    return loads


def requests_of(settings: Settings) -> list[Request]:
    """(kind, request) each, in an order that is mixed and always the same."""
    random = np.random.default_rng(0)
    kinds = [kind for kind, share in _KINDS.items() for _ in range(share)]
    steps = {"num_inference_steps": settings.steps} if settings.steps else {}
    requests: list[Request] = []
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
class Result:
    """A text, or pixels, or None of a request that has no result; and the seconds that it took."""

    value: str | np.ndarray | None
    seconds: float


def send(
    url: str,
    requests: Sequence[Request],
    clients: int,
    on_result: Callable[[int], None] = lambda results: None,
) -> list[Result]:
    """Sends requests from `clients` threads; their results in order. `on_result` takes the number of results."""
    import httpx

    limits = httpx.Limits(max_connections=clients)
    results, lock = 0, threading.Lock()
    on_result(results)
    with (
        httpx.Client(base_url=f"{url}/v1/", timeout=600, limits=limits) as client,
        concurrent.futures.ThreadPoolExecutor(clients) as threads,
    ):

        def send_one(request: Request) -> Result:
            values = dict(request[1])
            begin = time.perf_counter()
            response = client.post(values.pop("path"), **values)
            result = Result(_value(response), time.perf_counter() - begin)
            nonlocal results
            with lock:
                results += 1
                on_result(results)
            return result

        return list(threads.map(send_one, requests))


def _value(response: Any) -> str | np.ndarray | None:
    """The text or the pixels of a response; None if it has none."""
    if response.status_code != 200:
        return None
    values = response.json()
    if "choices" in values:
        return values["choices"][0]["message"]["content"]
    content = base64.b64decode(values["data"][0]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(content)))


def _same(value: str | np.ndarray | None, expected: str | np.ndarray | None) -> bool:
    if isinstance(value, np.ndarray) and isinstance(expected, np.ndarray):
        return int(np.abs(value.astype(int) - expected.astype(int)).max()) <= 1
    return isinstance(value, str) and value == expected


def _load(kind: str, separate: Sequence[Result], results: Sequence[Result], seconds: float) -> Load:
    times = [result.seconds for result in results]
    lost = [result.value is None for result in results]
    same = [_same(result.value, one.value) for result, one in zip(results, separate, strict=True)]
    counts = collections.Counter(zip(lost, same, strict=True))
    return Load(
        kind,
        len(results),
        lost=sum(lost),
        wrong=counts[False, False],
        sequential=len(separate) / sum(result.seconds for result in separate),
        concurrent=len(results) / seconds,
        p50=float(np.quantile(times, 0.5)),
        p95=float(np.quantile(times, 0.95)),
    )


def table(measured: Measured) -> str:
    """The loads as a table for a terminal."""
    lines = [
        f"{'requests':<22}{'lost':>6}{'wrong':>7}{'one by one/s':>14}{'concurrent/s':>14}{'ratio':>8}"
        f"{'p50 s':>9}{'p95 s':>9}"
    ]
    for load in measured.loads:
        lines.append(
            f"{f'{load.requests} {load.kind}':<22}{load.lost:>6}{load.wrong:>7}{load.sequential:>14.2f}"
            f"{load.concurrent:>14.2f}{load.concurrent / load.sequential:>8.2f}{load.p50:>9.3f}{load.p95:>9.3f}"
        )
    lines.append(f"programs compiled after ready: {measured.compiles}")
    sizes = (f"{size / 2**20:.0f} at {count}" for count, size in measured.memory.items())
    lines.append(f"memory of the server in MiB by results of the mixed load: {', '.join(sizes)}")
    return "\n".join(lines)


def record(measured: Measured, settings: Settings) -> dict[str, Any]:
    """The loads and settings, for JSON."""
    return harness.record([], settings) | dataclasses.asdict(measured)
