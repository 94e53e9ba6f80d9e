"""Server-sent events: a call's events as they come. The call is queued before the response begins, so that a full queue
is still a status and not an event."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from fastapi.responses import StreamingResponse

from tuna_jax.serving.calls import Call, ClientGoneError
from tuna_jax.serving.errors import ApiError

DONE = "data: [DONE]\n\n"


async def event_stream(call: Call, events: AsyncIterator[str]) -> StreamingResponse:
    """The response that sends the events of a call; an error becomes the last event."""
    await call.__aenter__()

    async def body() -> AsyncIterator[str]:
        try:
            async for event in events:
                yield event
        except ApiError as error:
            yield f"event: error\ndata: {json.dumps(error.body())}\n\n"
        except ClientGoneError:
            return
        finally:
            await call.__aexit__()

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(body(), media_type="text/event-stream", headers=headers)
