"""The application: the endpoints, and what they share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import warnings
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from tuna_jax.inference.pipeline import Tuna
from tuna_jax.serving import chat, errors, images, served
from tuna_jax.serving.calls import ClientGoneError, not_ready
from tuna_jax.serving.errors import ApiError
from tuna_jax.serving.guard import Guard, Keys
from tuna_jax.serving.metrics import Metrics
from tuna_jax.serving.remote import Remote
from tuna_jax.serving.scheduler import Scheduler
from tuna_jax.serving.settings import Settings
from tuna_jax.serving.videos import Jobs

_log = logging.getLogger("tuna_jax.serving")

PAGE = Path(__file__).parent / "page" / "index.html"
"""The page at `/`: one file, which uses the endpoints only and loads nothing."""
_PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; media-src data: blob:; connect-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
}
_BODY_SECONDS = 60.0  # For a body to arrive.
_THREADS = 4
_POLL = 0.05


class Server:
    """A model behind endpoints.

    Attributes:
      model, settings, served: what is served.
      scheduler, metrics, jobs, remote, threads: its parts.
      app: the ASGI application.
      draining: no new requests are taken.
      requests: number of requests under way.
    """

    def __init__(self, model: Tuna, settings: Settings | None = None, keys: Keys | None = None):
        self.model, self.settings = model, settings or Settings()
        self.served = served.of_model(model, self.settings)
        self.metrics = Metrics()
        self.scheduler = Scheduler(model, self.served, self.metrics)
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="media")
        self.jobs = Jobs(self)
        self.remote = Remote(
            self.settings.allow_remote_media,
            max_bytes=self.settings.max_bytes,
            max_files=self.settings.max_images,
        )
        self.draining = False
        self.requests = 0
        self.created = int(time.time())
        if not self.settings.log_requests:
            # The tokenizer's warning quotes words of the prompt.
            warnings.filterwarnings("ignore", message=".*is not in the compact vocabulary")
        self.app = Guard(_application(self), self, keys or Keys())

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.scheduler.ready and not self.draining

    def check_model(self, name: str | None) -> None:
        """Checks the name of the model in a request; a request may leave it out."""
        if name not in (None, "", self.settings.name):
            message = f"there is no model {name[:60]!r}; this server has {self.settings.name!r}"
            raise ApiError(404, message, "model", "model_not_found")
        if not self.ready:
            raise not_ready()

    async def json_of(self, request: Request) -> Any:
        """The JSON of a body.

        Raises:
          ApiError: it is not JSON, too large, or does not arrive.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            message = f"the body must be application/json, not {kind[:60] or 'without a type'}"
            raise ApiError(415, message, None, "unsupported_media_type")
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                content = await request.body()
        except TimeoutError:
            raise ApiError(408, "the body did not arrive in time", None, "timeout") from None
        try:
            values = json.loads(content, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
            message = f"the body is not valid JSON: {reason[:200]}"
            raise errors.invalid(None, message, "invalid_json") from None
        if self.settings.log_requests:
            _log.warning("request: %.2000s", json.dumps(values))
        return values

    async def form_of(self, request: Request) -> tuple[dict[str, Any], list[tuple[str, bytes]]]:
        """The texts of a form, and its files by name.

        Raises:
          ApiError: it is not a form, too large, or does not arrive.
        """
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            message = "the body must be a form (multipart/form-data)"
            raise ApiError(415, message, None, "unsupported_media_type")
        values: dict[str, Any] = {}
        files: list[tuple[str, bytes]] = []
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                form = await request.form(
                    max_files=16, max_fields=64, max_part_size=self.settings.max_bytes
                )
                for name, value in form.multi_items():
                    if isinstance(value, UploadFile):
                        files.append((name, await value.read()))
                    else:
                        values[name] = value
        except TimeoutError:
            raise ApiError(408, "the body did not arrive in time", None, "timeout") from None
        if self.settings.log_requests:
            _log.warning("request: %.2000s", json.dumps(values))
        return values, files

    @contextlib.asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Starts compiling; at the end, waits for what is under way."""
        self.scheduler.start()
        yield
        self.draining = True
        until = time.monotonic() + self.settings.drain
        while (self.jobs.running or not self.scheduler.idle) and time.monotonic() < until:
            await asyncio.sleep(_POLL)
        await asyncio.to_thread(self.scheduler.stop)
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.metrics.close()


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _application(server: Server) -> FastAPI:
    """The endpoints."""
    # Without pages that load scripts from elsewhere.
    app = FastAPI(
        title="tuna_jax", docs_url=None, redoc_url=None, openapi_url=None, lifespan=server.lifespan
    )

    async def on_api_error(_: Request, error: Any) -> Response:
        return error.response()

    async def on_http_error(_: Request, error: Any) -> Response:
        return ApiError(error.status_code, str(error.detail), None, None, error.headers).response()

    async def on_client_gone(_: Request, error: Any) -> Response:
        del error
        return Response(status_code=499)

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(ClientGoneError, on_client_gone)

    @app.get("/health")
    async def health() -> Response:
        """200 when everything is compiled, else 503."""
        status = "ready" if server.ready else "draining" if server.draining else "compiling"
        return JSONResponse({"status": status}, 200 if server.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> Response:
        """The model, and what is served of it."""
        return JSONResponse({"object": "list", "data": [_model(server)]})

    @app.get("/v1/models/{name}")
    async def model(name: str) -> Response:
        """The model."""
        if name != server.settings.name:
            message = f"there is no model {name[:60]!r}; this server has {server.settings.name!r}"
            raise ApiError(404, message, "model", "model_not_found")
        return JSONResponse(_model(server))

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        """Answers."""
        return await chat.complete(server, request)

    @app.post("/v1/images/generations")
    async def image_generations(request: Request) -> Response:
        """Images."""
        return await images.generate(server, request)

    @app.post("/v1/images/edits")
    async def image_edits(request: Request) -> Response:
        """Edited images."""
        return await images.edit(server, request)

    @app.post("/v1/videos")
    async def create_video(request: Request) -> Response:
        """A job that makes a clip."""
        return await server.jobs.create(request)

    @app.get("/v1/videos")
    async def list_videos(request: Request) -> Response:
        """The jobs."""
        return server.jobs.list(request)

    @app.get("/v1/videos/{name}")
    async def show_video(name: str) -> Response:
        """A job."""
        return server.jobs.show(name)

    @app.delete("/v1/videos/{name}")
    async def delete_video(name: str) -> Response:
        """Stops and forgets a job."""
        return await server.jobs.delete(name)

    @app.get("/v1/videos/{name}/content")
    async def video_content(name: str) -> Response:
        """The clip of a job."""
        return server.jobs.content(name)

    @app.get("/")
    async def page() -> Response:
        """The page."""
        return FileResponse(PAGE, headers=_PAGE_HEADERS)

    return app


def _model(server: Server) -> dict[str, Any]:
    """The model as `/v1/models` has it, with what is served: what a client needs for its forms."""
    what = server.served
    names = [f"{width}x{height}" for height, width in what.sizes]
    samples = server.model.samples
    return {
        "id": server.settings.name,
        "object": "model",
        "created": server.created,
        "owned_by": "tuna_jax",
        "tasks": list(what.tasks),
        "sizes": names,
        "edit_sizes": [f"{width}x{height}" for height, width in what.edit_sizes],
        "num_frames": list(what.frames),
        "max_completion_tokens": server.settings.max_new_tokens,
        "max_images": server.settings.max_images,
        "max_n": server.settings.max_results,
        "defaults": {
            "num_inference_steps": samples.steps,
            "guidance_scale": samples.guidance,
            "edit_guidance_scale": samples.of_edits().guidance,
            "shift": samples.shift,
            "solver": samples.solver,
        },
    }
