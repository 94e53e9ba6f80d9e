"""`POST /v1/chat/completions`: answers, streamed or not, and images as parts of the content."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from tuna_jax.serving import building, errors, media, schemas
from tuna_jax.serving.calls import Call, in_thread
from tuna_jax.serving.rows import Answer, Delta, Picture
from tuna_jax.serving.schemas import ChatRequest
from tuna_jax.serving.streams import DONE, event_stream

if TYPE_CHECKING:
    from tuna_jax.serving.app import Server


async def complete(server: Server, request: Request) -> Response:
    """The response to a request."""
    body = schemas.parse(ChatRequest, await server.json_of(request))
    server.check_model(body.model)
    modalities = body.modalities or ["text"]
    if modalities not in (["text"], ["image"]):
        raise errors.invalid(
            "modalities", 'modalities must be ["text"] or ["image"]', "unsupported_value"
        )
    fetched = await server.remote.fetch(body)
    head = {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": server.settings.name,
    }
    if modalities == ["image"]:
        return await _pictures(server, request, body, fetched, head)
    rows = await in_thread(
        server.threads, building.text_rows, server.model, server.served, body, fetched
    )
    prompt = len(rows[0].prompt.tokens)
    call = Call(server.scheduler, rows, request)
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return await event_stream(call, _chunks(call, head, prompt, usage))
    async with call:
        answers = await call.results()
    choices = [_choice(i, answer.text, answer.reason) for i, answer in enumerate(answers)]
    usage = _usage(prompt, sum(answer.tokens for answer in answers))
    return JSONResponse({**head, "object": "chat.completion", "choices": choices, "usage": usage})


def _choice(index: int, content: Any, reason: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": content, "refusal": None}
    return {"index": index, "message": message, "finish_reason": reason, "logprobs": None}


def _usage(prompt: int, completion: int) -> dict[str, int]:
    total = prompt + completion
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


async def _chunks(
    call: Call, head: dict[str, Any], prompt: int, with_usage: bool
) -> AsyncIterator[str]:
    """The events of a streamed answer."""
    extra = {"usage": None} if with_usage else {}

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
        value = {**head, "object": "chat.completion.chunk", "choices": [choice], **extra}
        return f"data: {json.dumps(value)}\n\n"

    for index in range(len(call.rows)):
        yield chunk(index, {"role": "assistant", "content": ""})
    tokens = 0
    async for index, event in call.events():
        if isinstance(event, Delta):
            yield chunk(index, {"content": event.text})
        elif isinstance(event, Answer):
            tokens += event.tokens
            yield chunk(index, {}, event.reason)
    if with_usage:
        value = {**head, "object": "chat.completion.chunk", "choices": []}
        yield f"data: {json.dumps({**value, 'usage': _usage(prompt, tokens)})}\n\n"
    yield DONE


async def _pictures(
    server: Server,
    request: Request,
    body: ChatRequest,
    fetched: Mapping[str, bytes],
    head: dict[str, Any],
) -> Response:
    if body.stream:
        message = "an image is not streamed here; use /v1/images/generations with stream"
        raise errors.invalid("stream", message, "unsupported_value")
    rows = await in_thread(
        server.threads, building.chat_picture_rows, server.model, server.served, body, fetched
    )
    async with Call(server.scheduler, rows, request) as call:
        results = await call.results()
    choices = []
    for index, result in enumerate(results):
        assert isinstance(result, Picture)
        kind = body.output_format or "png"
        url = await in_thread(server.threads, media.data_url, result.clip[0], kind)
        part = {"type": "image_url", "image_url": {"url": url}}
        choices.append(_choice(index, [part], "stop"))
    usage = _usage(len(rows[0].positive.tokens), 0)
    return JSONResponse({**head, "object": "chat.completion", "choices": choices, "usage": usage})
