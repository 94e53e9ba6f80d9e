"""What `/metrics` reports, in Prometheus's format."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import prometheus_client as prometheus

from tuna_jax.serving.rows import Row

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters and histograms of one server; any thread may call it."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        common: dict[str, Any] = {"registry": self.registry}
        self._requests = prometheus.Counter(
            "tuna_requests", "Requests by path and status.", ["path", "status"], **common
        )
        self._seconds = prometheus.Histogram(
            "tuna_request_seconds",
            "Seconds of requests, waiting included.",
            ["path"],
            buckets=_SECONDS,
            **common,
        )
        self._waits = prometheus.Histogram(
            "tuna_wait_seconds",
            "Seconds that results waited for a slot.",
            ["kind"],
            buckets=_SECONDS,
            **common,
        )
        self._batches = prometheus.Histogram(
            "tuna_batch_rows",
            "Rows per call of the device.",
            ["kind"],
            buckets=_ROWS,
            **common,
        )
        self._tokens = prometheus.Counter("tuna_tokens", "Generated tokens.", **common)
        self._results = prometheus.Counter("tuna_results", "Finished results.", ["kind"], **common)
        self._compiles = prometheus.Gauge(
            "tuna_compiles_after_ready", "Programs compiled since the server was ready.", **common
        )
        self._compiles.set_function(lambda: self.compiles)
        self._queue = prometheus.Gauge("tuna_waiting", "Results that wait for a slot.", **common)
        self._active = prometheus.Gauge("tuna_active", "Results in a slot.", ["kind"], **common)
        self._lock = threading.Lock()
        self.compiles = 0
        self.counts_compiles = False
        _listeners.append(self._compiled)

    def close(self) -> None:
        """Stops counting compiled programs."""
        _listeners.remove(self._compiled)

    def _compiled(self) -> None:
        if self.counts_compiles:
            with self._lock:
                self.compiles += 1

    def watch(self, waiting: Callable[[], int], active: dict[str, Callable[[], int]]) -> None:
        """Reports the length of the queue and the occupied slots by kind."""
        self._queue.set_function(waiting)
        for kind, count in active.items():
            self._active.labels(kind).set_function(count)

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request has been answered."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def batch(self, kind: str, rows: int) -> None:
        """A call of the device: the number of its rows that a result depends on."""
        self._batches.labels(kind).observe(rows)

    def tokens(self, count: int) -> None:
        """Tokens were generated."""
        self._tokens.inc(count)

    def finished(self, kind: str, row: Row) -> None:
        """A row has its result."""
        self._results.labels(kind).inc()
        self._waits.labels(kind).observe((row.started or time.monotonic()) - row.created)

    def text(self) -> bytes:
        """The page."""
        return prometheus.generate_latest(self.registry)


_listeners: list[Callable[[], None]] = []


def _on_duration(event: str, duration_secs: float, **kwargs: Any) -> None:
    del duration_secs, kwargs
    if event == "/jax/core/compile/backend_compile_duration":
        for listener in list(_listeners):
            listener()


jax.monitoring.register_event_duration_secs_listener(_on_duration)
