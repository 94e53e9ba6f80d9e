"""`POST /v1/images/generations` and `/v1/images/edits`, with partial images and progress as events."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from tuna_jax.serving import building, errors, media, schemas
from tuna_jax.serving.calls import Call, in_thread
from tuna_jax.serving.rows import Partial, Picture, PictureRow, Progress
from tuna_jax.serving.schemas import ImageRequest
from tuna_jax.serving.streams import event_stream

if TYPE_CHECKING:
    from tuna_jax.serving.app import Server


async def generate(server: Server, request: Request) -> Response:
    """The response to `/v1/images/generations`."""
    body = schemas.parse(ImageRequest, await server.json_of(request))
    return await _respond(server, request, body, None)


async def edit(server: Server, request: Request) -> Response:
    """The response to `/v1/images/edits`, whose body is a form."""
    values, files = await server.form_of(request)
    sources = [content for name, content in files if name in ("image", "image[]")]
    others = [name for name, _ in files if name not in ("image", "image[]")]
    if others:
        raise errors.invalid(others[0], f"{others[0]} is not supported", "unsupported_parameter")
    if not sources:
        raise errors.invalid("image", "image is missing", "missing_required_parameter")
    body = schemas.parse(ImageRequest, values, from_form=True)
    return await _respond(server, request, body, sources)


async def _respond(
    server: Server, request: Request, body: ImageRequest, sources: list[bytes] | None
) -> Response:
    server.check_model(body.model)
    seed = building.seed_of(body.seed)
    rows = await in_thread(
        server.threads, building.image_rows, server.model, server.served, body, sources, seed
    )
    kind, start = body.output_format or "png", time.monotonic()
    height, width = rows[0].shape[1:]
    head = {
        "created": int(time.time()),
        "output_format": kind,
        "size": f"{width}x{height}",
        "seed": seed,
    }
    call = Call(server.scheduler, rows, request)
    if body.stream:
        task = "image_generation" if sources is None else "image_edit"
        return await event_stream(call, _events(server, call, task, head, kind))
    async with call:
        pictures = await call.results()
    data = []
    for picture in pictures:
        content = await in_thread(server.threads, media.encoded, picture.clip[0], kind)
        data.append({"b64_json": media.base64_of(content)})
    metrics = {"seconds": round(time.monotonic() - start, 4)}
    return JSONResponse({**head, "data": data, "usage": _usage(rows), "metrics": metrics})


def _usage(rows: list[PictureRow]) -> dict[str, Any]:
    """Tokens: of the prompt, and evaluated positions of the results."""
    source = int(rows[0].positive.spans[:, 1].sum())
    given = len(rows[0].positive.tokens)
    return {
        "input_tokens": given,
        "output_tokens": 0,
        "total_tokens": given,
        "input_tokens_details": {"text_tokens": given - source, "image_tokens": source},
    }


async def _events(
    server: Server, call: Call, task: str, head: dict[str, Any], kind: str
) -> AsyncIterator[str]:
    """The events of streamed images; `index` says of which image."""

    async def event(name: str, values: dict[str, Any], clip: Any = None) -> str:
        value = {"type": f"{task}.{name}", **values}
        if clip is not None:
            content = await in_thread(server.threads, media.encoded, clip[0], kind)
            value |= {"b64_json": media.base64_of(content), "created_at": head["created"]}
            value |= {"size": head["size"], "output_format": kind}
            value |= {"background": "opaque", "quality": "auto"}
        return f"event: {task}.{name}\ndata: {json.dumps(value)}\n\n"

    rows = [row for row in call.rows if isinstance(row, PictureRow)]
    async for index, item in call.events():
        where = {"index": index}
        if isinstance(item, Progress):
            yield await event("progress", {**where, "step": item.done, "steps": item.total})
        elif isinstance(item, Partial):
            values = {**where, "partial_image_index": item.index}
            yield await event("partial_image", values, item.clip)
        elif isinstance(item, Picture):
            values = {**where, "usage": _usage(rows), "seed": head["seed"]}
            yield await event("completed", values, item.clip)
