"""`/v1/videos`: jobs that generate a clip. Jobs live in this process; finished ones are kept for a while."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from tuna_jax.serving import building, errors, media, schemas
from tuna_jax.serving.calls import Call, in_thread
from tuna_jax.serving.rows import Picture, Progress
from tuna_jax.serving.schemas import VideoRequest

if TYPE_CHECKING:
    from tuna_jax.serving.app import Server

_FPS = 8.0
_ENDED = ("completed", "failed")


@dataclasses.dataclass(kw_only=True, eq=False)
class Job:
    """A clip that is made.

    Attributes:
      status: 'queued', 'in_progress', 'completed' or 'failed'.
      progress: percentage.
      content: the MP4 file.
      error: code and message of a failure.
    """

    model: str
    size: str
    frames: int
    fps: float
    seed: int
    id: str = dataclasses.field(default_factory=lambda: f"video_{secrets.token_hex(12)}")
    created_at: int = dataclasses.field(default_factory=lambda: int(time.time()))
    status: str = "queued"
    progress: int = 0
    completed_at: int | None = None
    content: bytes | None = dataclasses.field(default=None, repr=False)
    error: dict[str, Any] | None = None
    call: Call | None = dataclasses.field(default=None, repr=False)
    task: asyncio.Task[None] | None = dataclasses.field(default=None, repr=False)

    def to_json(self, keep: float) -> dict[str, Any]:
        """The job as clients see it."""
        return {
            "id": self.id,
            "object": "video",
            "model": self.model,
            "status": self.status,
            "progress": self.progress,
            "created_at": self.created_at,
            "completed_at": self.completed_at,
            "expires_at": None if self.completed_at is None else self.completed_at + int(keep),
            "size": self.size,
            "seconds": f"{self.frames / self.fps:g}",
            "num_frames": self.frames,
            "fps": self.fps,
            "seed": self.seed,
            "error": self.error,
        }


class Jobs:
    """The jobs of a server, in the order in which they came."""

    def __init__(self, server: Server):
        self._server = server
        self._jobs: dict[str, Job] = {}

    def _forget(self) -> None:
        """Drops ended jobs that are too old or too many."""
        settings = self._server.settings
        ended = [job for job in self._jobs.values() if job.status in _ENDED]
        now = time.time()
        for position, job in enumerate(reversed(ended)):
            if position >= settings.jobs or now > (job.completed_at or now) + settings.job_seconds:
                del self._jobs[job.id]

    def get(self, name: str) -> Job:
        """A job by its id.

        Raises:
          ApiError: there is none.
        """
        self._forget()
        if name not in self._jobs:
            raise errors.ApiError(404, f"there is no video {name[:60]!r}", "video_id", "not_found")
        return self._jobs[name]

    async def create(self, request: Request) -> Response:
        """`POST /v1/videos`, with a form or JSON."""
        server = self._server
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            values, files = await server.form_of(request)
            if files:
                name = files[0][0]
                message = f"{name} is not supported: clips are generated from text only"
                raise errors.invalid(name, message, "unsupported_parameter")
            body = schemas.parse(VideoRequest, values, from_form=True)
        else:
            body = schemas.parse(VideoRequest, await server.json_of(request))
        server.check_model(body.model)
        building.require("video", server.served)
        height, width = building.size_of(body.size, server.served.sizes)
        fps = body.fps or _FPS
        frames = _frames(body, fps, server.served.frames)
        seed = building.seed_of(body.seed)
        (row,) = await in_thread(
            server.threads,
            lambda: building.picture_rows(
                server.model,
                server.served,
                body,
                body.prompt,
                (frames, height, width),
                1,
                seed,
                progress=True,
            ),
        )
        self._forget()
        job = Job(
            model=server.settings.name, size=f"{width}x{height}", frames=frames, fps=fps, seed=seed
        )
        call = Call(server.scheduler, [row])
        await call.__aenter__()  # A full queue is this request's error.
        self._jobs[job.id], job.call = job, call
        job.task = asyncio.create_task(self._run(job, call))
        return JSONResponse(job.to_json(server.settings.job_seconds))

    async def _run(self, job: Job, call: Call) -> None:
        try:
            async for _, event in call.events():
                if isinstance(event, Progress):
                    job.status = "in_progress"
                    job.progress = min(99, 100 * event.done // event.total)
                elif isinstance(event, Picture):
                    threads = self._server.threads
                    job.content = await in_thread(threads, media.mp4, event.clip, job.fps)
            job.status, job.progress = "completed", 100
        except errors.ApiError as error:
            job.status = "failed"
            job.error = {"code": error.code, "message": error.message}
        except Exception as error:
            job.status = "failed"
            job.error = {"code": "internal", "message": type(error).__name__}
        finally:
            job.completed_at = int(time.time())
            await call.__aexit__()

    def list(self, request: Request) -> Response:
        """`GET /v1/videos?limit=&after=&order=`."""
        self._forget()
        query = request.query_params
        limit, order = query.get("limit", "20"), query.get("order", "desc")
        if not (limit.isdecimal() and len(limit) < 4 and 1 <= int(limit) <= 100):
            raise errors.invalid("limit", "limit must be a whole number from 1 to 100")
        if order not in ("asc", "desc"):
            raise errors.invalid("order", "order must be asc or desc")
        jobs = list(self._jobs.values())
        jobs = jobs if order == "asc" else jobs[::-1]
        if "after" in query:
            ids = [job.id for job in jobs]
            jobs = jobs[ids.index(self.get(query["after"]).id) + 1 :]
        page = [job.to_json(self._server.settings.job_seconds) for job in jobs[: int(limit)]]
        value = {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(jobs) > len(page),
        }
        return JSONResponse(value)

    def show(self, name: str) -> Response:
        """`GET /v1/videos/{id}`."""
        return JSONResponse(self.get(name).to_json(self._server.settings.job_seconds))

    async def delete(self, name: str) -> Response:
        """`DELETE /v1/videos/{id}`, which stops the job too."""
        job = self.get(name)
        del self._jobs[name]
        if job.call is not None:
            job.call.cancel()  # A task that has not begun would end without doing so.
        if job.task is not None:
            job.task.cancel()
        return JSONResponse({"id": name, "object": "video.deleted", "deleted": True})

    def content(self, name: str) -> Response:
        """`GET /v1/videos/{id}/content`."""
        job = self.get(name)
        if job.content is None:
            message = f"the video is {job.status}; it has no content"
            raise errors.ApiError(
                409 if job.status != "failed" else 404, message, None, "not_ready"
            )
        headers = {"Content-Disposition": f'attachment; filename="{name}.mp4"'}
        return Response(job.content, media_type="video/mp4", headers=headers)

    @property
    def running(self) -> int:
        """Number of jobs that have not ended."""
        return sum(job.status not in _ENDED for job in self._jobs.values())


def _frames(body: VideoRequest, fps: float, served: tuple[int, ...]) -> int:
    """The number of frames, which must be one that is served."""
    names = ", ".join(map(str, served))
    if body.num_frames is not None:
        if body.num_frames not in served:
            message = f"num_frames is {body.num_frames}; this server generates {names}"
            raise errors.invalid("num_frames", message, "unsupported_size")
        return body.num_frames
    if body.seconds is None:
        return served[-1]
    try:
        seconds = float(body.seconds)
        wanted = round(seconds * fps)
    except (ValueError, OverflowError):
        raise errors.invalid("seconds", "seconds must be a number", "invalid_value") from None
    for frames in served:  # Clips of 1 + 4k frames are one longer.
        if frames in (wanted, wanted + 1):
            return frames
    message = (
        f"seconds is {seconds:g}, {wanted} frames at {fps:g} per second; this server generates clips of {names} "
        f"frames: give num_frames, or other seconds or fps"
    )
    raise errors.invalid("seconds", message, "unsupported_size")
