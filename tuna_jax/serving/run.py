"""Runs a server until a signal ends it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import uvicorn

from tuna_jax.serving.app import Server

_POLL = 0.2


class _Uvicorn(uvicorn.Server):
    """A uvicorn that drains at the first SIGTERM or SIGINT and exits with 0, and ends at once at the second."""

    def __init__(self, config: uvicorn.Config, server: Server):
        super().__init__(config)
        self._served = server

    def handle_exit(self, sig: int, frame: Any) -> None:
        del sig, frame
        if self._served.draining:
            self.force_exit = True
        self._served.draining = True
        self.should_exit = True


def run(
    server: Server,
    host: str = "127.0.0.1",
    port: int = 8000,
    on_ready: Callable[[str], object] = lambda url: None,
) -> int:
    """Serves until SIGTERM or SIGINT, which let requests under way finish.

    Args:
      server: what is served.
      host, port: where it listens; port 0 takes a free one.
      on_ready: called with the server's address when everything is compiled.

    Returns:
      The exit status: 0, or 1 if a program could not be compiled.

    """
    config = uvicorn.Config(
        server.app,
        host,
        port,
        log_config=None,
        access_log=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=max(1, round(server.settings.drain)),
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=64 << 10,
        server_header=False,
    )
    return _run(server, _Uvicorn(config, server), on_ready)


def _run(server: Server, listener: _Uvicorn, on_ready: Callable[[str], object]) -> int:
    async def serve() -> None:
        watcher = asyncio.create_task(watch())
        await listener.serve()
        watcher.cancel()

    async def watch() -> None:
        while not listener.started or not server.scheduler.ready:
            if server.scheduler.error is not None:
                listener.should_exit = True
                return
            await asyncio.sleep(_POLL)
        on_ready(address(listener))

    asyncio.run(serve())
    if server.scheduler.error is not None:
        raise server.scheduler.error
    return 0


def address(listener: uvicorn.Server) -> str:
    """Where a started server listens."""
    host, port = listener.servers[0].sockets[0].getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class InThread:
    """A server in a thread of this process, on a free port, for tests and measurements.

        with InThread(Server(model)) as running:
            openai.OpenAI(base_url=running.url + "/v1", api_key="-")

    Attributes:
      server: the server.
      url: where it listens.
    """

    def __init__(self, server: Server):
        self.server, self.url = server, ""
        config = uvicorn.Config(
            server.app, "127.0.0.1", 0, log_config=None, access_log=False, ws="none", lifespan="on"
        )
        self._listener = _Uvicorn(config, server)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        def ready(url: str) -> None:
            self.url = url
            self._ready.set()

        try:
            _run(self.server, self._listener, ready)
        finally:
            self._ready.set()

    def __enter__(self) -> InThread:
        self._thread.start()
        self._ready.wait()
        if not self.url:
            raise RuntimeError("the server did not start") from self.server.scheduler.error
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.should_exit = True
        self._thread.join(120)
