"""Rows from requests: prompts and media as tokens, pixels and plans. It runs outside the event loop."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tuna_jax.inference import batching, option_checks
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.generation import flow_slots
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.sequence import Grid, TokenSequence, editing_prompt, generation_prompt
from tuna_jax.serving import errors, media, schemas, served
from tuna_jax.serving.rows import PictureRow, TextRow
from tuna_jax.serving.schemas import (
    ChatRequest,
    ImagePart,
    ImageRequest,
    Message,
    Sampling,
    TextPart,
    VideoPart,
)
from tuna_jax.serving.served import Served


def seed_of(seed: int | None) -> int:
    """The seed of a request; one at random if it gives none."""
    return secrets.randbits(32) if seed is None else seed


def _names(sizes: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{width}x{height}" for height, width in sizes)


def size_of(text: str | None, sizes: Sequence[tuple[int, int]], param: str = "size") -> tuple:
    """(height, width) of a size 'WIDTHxHEIGHT' that is served; the first one by default.

    Raises:
      ApiError: it is another one; those that are served are listed.
    """
    if text is None or text == "auto":
        return sizes[0]
    width, _, height = text.lower().partition("x")
    if width.isdecimal() and height.isdecimal() and len(text) < 13:
        size = (int(height), int(width))
        if size in sizes:
            return size
    raise errors.invalid(
        param, f"size {text!r} is not served; choose {_names(sizes)}", "unsupported_size"
    )


def _width_of(sequences: Sequence[TokenSequence], widths: Sequence[int], param: str) -> int:
    """The width that the sequences are padded to."""
    longest = max(len(sequence.tokens) for sequence in sequences)
    for width in widths:
        if width >= longest:
            return width
    message = f"the prompt has {longest} tokens; the limit is {widths[-1]}"
    raise errors.invalid(param, message, "context_length_exceeded")


def picture_rows(
    model: Tuna,
    what: Served,
    body: Sampling,
    prompt: str,
    shape: tuple[int, int, int],
    count: int,
    seed: int,
    source: np.ndarray | None = None,
    **options: Any,
) -> list[PictureRow]:
    """The rows of a request for images or clips; row i is that of (seed, i), as `Tuna.generate_image` numbers them.

    Args:
      model, what: what is served.
      body: how to sample.
      prompt: the prompt, or the instruction of an edit.
      shape: (frames, height, width).
      count: number of results.
      seed: of the noise.
      source: the image to edit.
      **options: further fields of `PictureRow`.

    Raises:
      ApiError: a field is out of the limits.
    """
    defaults = model.samples if source is None else model.samples.of_edits()
    given = {
        "steps": body.num_inference_steps,
        "guidance": body.guidance_scale,
        "guidance_interval": None
        if body.guidance_interval is None
        else tuple(body.guidance_interval),
        "shift": body.shift,
        "solver": body.solver,
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if changes.get("steps", 0) > what.settings.max_steps:
        raise errors.invalid(
            "num_inference_steps",
            f"num_inference_steps is {changes['steps']}; the limit is {what.settings.max_steps}",
            "too_many_steps",
        )
    try:
        settings = dataclasses.replace(defaults, **changes)
    except ValueError as error:
        raise errors.invalid("guidance_interval", str(error), "invalid_value") from None
    if settings.guidance in (0.0, 1.0) and body.negative_prompt:
        message = f"negative_prompt has no effect at guidance_scale {settings.guidance:g}; raise it"
        raise errors.invalid("negative_prompt", message, "invalid_value")
    special, tokenizer = model.tokenizer.special, model.tokenizer
    grid = Grid(*model.config.space.latent_shape(*shape)[:3])

    def tokens_of(text: str) -> TokenSequence:
        ids = tokenizer.encode(text)
        if source is None:
            return generation_prompt(special, ids)
        return editing_prompt(special, ids, grid)

    positive, negative = tokens_of(prompt), tokens_of(body.negative_prompt or "")
    visual = 0 if source is None else 1 + grid.tokens
    widths = [batching.round_up(visual + text) for text in what.settings.image_prompt_tokens]
    plan = flow_slots.plan(
        model.config,
        steps=settings.steps,
        shift=settings.shift,
        solver=settings.solver,
        guidance=settings.guidance,
        guidance_interval=settings.guidance_interval,
    )
    common = {
        "shape": shape,
        "positive": positive,
        "negative": negative,
        "source": source,
        "width": _width_of([positive, negative], widths, "prompt"),
        "plan": plan,
        "guidance": settings.guidance,
        **options,
    }
    return [PictureRow(key=batching.key_data(seed, i), **common) for i in range(count)]


def count_of(n: int | None, what: Served) -> int:
    """Number of results."""
    most = what.settings.max_results
    if (n or 1) > most:
        raise errors.invalid("n", f"n is {n}; the limit is {most}", "invalid_value")
    return n or 1


def require(task: str, what: Served) -> None:
    """Checks that a task is served."""
    if task not in what.tasks:
        message = f"this server does not serve {task!r}; it serves {', '.join(what.tasks)}"
        raise errors.invalid(None, message, "unsupported_task")


# Chat.


def text_rows(
    model: Tuna, what: Served, body: ChatRequest, fetched: Mapping[str, bytes]
) -> list[TextRow]:
    """The rows of a request for answers; choice i is that of (seed, i). `fetched` has the files of its remote URLs.

    Raises:
      ApiError: a field is out of the limits, or a message cannot be read.
    """
    require("chat", what)
    messages, clips = _messages(model, what, body.messages, fetched)
    try:
        conversation = Conversation(tuple(messages), tuple(clips))
        prompt = model.prompt_tokens(conversation, body.template)
    except ValueError as error:
        raise errors.invalid("messages", str(error), "invalid_value") from None
    kind = None
    if clips:
        frames, height, width = clips[0].shape[:3]
        counts = (1, what.settings.max_images) if frames == 1 else (1,)
        fitting = [count for count in counts if count >= len(clips)]
        if not fitting:
            most = what.settings.max_images if frames == 1 else 1
            kind_name = "images" if frames == 1 else "videos"
            message = f"the conversation has {len(clips)} {kind_name}; the limit is {most}"
            raise errors.invalid("messages", message, "too_many_media")
        kind = served.media_of(model, fitting[0], frames, height, width)
    limit = what.settings.max_new_tokens
    most = body.max_completion_tokens or body.max_tokens or min(128, limit)
    if most > limit:
        name = "max_completion_tokens" if body.max_completion_tokens else "max_tokens"
        message = f"{name} is {most}; the limit is {limit}"
        raise errors.invalid(name, message, "context_length_exceeded")
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if not all(stop):
        raise errors.invalid("stop", "a stop string is empty", "invalid_value")
    temperature = body.temperature or 0.0
    if 0 < temperature < option_checks.SMALLEST_TEMPERATURE:
        temperature = 0.0
    common = {
        "prompt": prompt,
        "media": kind,
        "clips": np.stack(clips) if clips else None,
        "width": _width_of([prompt], served.widths(what, kind), "messages"),
        "most": most,
        "temperature": temperature,
        "top_k": body.top_k or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "stop": stop,
        "stream": bool(body.stream),
    }
    seed = seed_of(body.seed)
    return [
        TextRow(key=batching.key_data(seed, i), **common) for i in range(count_of(body.n, what))
    ]


def _messages(
    model: Tuna, what: Served, messages: Sequence[Message], fetched: Mapping[str, bytes]
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Messages as `Conversation` takes them, and their media in order.

    An image that the assistant has made, in its content, is put before the user's next text: so a conversation can go
    on about it.
    """
    converted: list[dict[str, Any]] = []
    clips: list[np.ndarray] = []
    moved: list[np.ndarray] = []
    for index, message in enumerate(messages):
        texts: list[str | None] = []  # None: the next of `own`.
        own: list[np.ndarray] = []
        for where, part in _parts(message, index):
            if isinstance(part, TextPart):
                schemas.unicode(where, part.text)
                texts.append(part.text)
                continue
            if message.role not in ("user", "assistant"):
                raise errors.invalid(where, "images and videos are the user's", "invalid_value")
            texts.append(None)
            own.append(_read(part, what, where, fetched))
        if message.role == "assistant":
            moved += own
            text = "".join(text for text in texts if text is not None)
            if text or not own:
                converted.append({"role": "assistant", "content": [{"type": "text", "text": text}]})
            continue
        if message.role == "user":
            texts, own, moved = [None] * len(moved) + texts, moved + own, []
        clips += own
        if model.template == "plain":  # Which begins with its image, as the model was trained.
            texts.sort(key=lambda text: text is not None)
        parts = [
            {"type": "image"} if text is None else {"type": "text", "text": text} for text in texts
        ]
        role = "system" if message.role == "developer" else message.role
        converted.append({"role": role, "content": parts})
    return converted, clips


def _parts(message: Message, index: int) -> list[tuple[str, Any]]:
    where = f"messages[{index}].content"
    if message.content is None:
        if message.role != "assistant":
            raise errors.invalid(where, f"{where} is missing", "missing_required_parameter")
        return []
    if isinstance(message.content, str):
        return [(where, TextPart(type="text", text=message.content))]
    return [(f"{where}[{number}]", part) for number, part in enumerate(message.content)]


def _read(
    part: ImagePart | VideoPart, what: Served, where: str, fetched: Mapping[str, bytes]
) -> np.ndarray:
    if isinstance(part, ImagePart):
        where = f"{where}.image_url.url"
        content = media.content_of(part.image_url.url, fetched, where)
        return media.image(content, what.image_shapes, what, where)
    where = f"{where}.video_url.url"
    return media.video(media.content_of(part.video_url.url, fetched, where), what, where)


def chat_picture_rows(
    model: Tuna, what: Served, body: ChatRequest, fetched: Mapping[str, bytes]
) -> list[PictureRow]:
    """The rows of a chat whose answer is an image (`modalities`): the last message's text is the prompt, and its image,
    if it has one, is edited.

    Raises:
      ApiError: a field is out of the limits, or the last message is not the user's.
    """
    index, message = len(body.messages) - 1, body.messages[-1]
    where = f"messages[{index}]"
    if message.role != "user":
        raise errors.invalid("messages", "the last message must be the user's", "invalid_value")
    parts = _parts(message, index)
    prompt = " ".join(part.text for _, part in parts if isinstance(part, TextPart)).strip()
    schemas.unicode(where, prompt)
    pictures = [(name, part) for name, part in parts if isinstance(part, ImagePart)]
    if any(isinstance(part, VideoPart) for _, part in parts):
        raise errors.invalid(where, "a video cannot be edited", "unsupported_media")
    if len(pictures) > 1:
        raise errors.invalid(where, "one image can be edited at a time", "too_many_media")
    require("edit" if pictures else "image", what)
    size = body.size
    if size is None and (body.width or body.height):
        size = f"{body.width or body.height}x{body.height or body.width}"
    source = None
    if pictures:
        name, part = pictures[0]
        name = f"{name}.image_url.url"
        source = edit_source(media.content_of(part.image_url.url, fetched, name), size, what, name)
        shape = (1, *source.shape[1:3])
    else:
        shape = (1, *size_of(size, what.sizes))
    count, seed = count_of(body.n, what), seed_of(body.seed)
    return picture_rows(model, what, body, prompt, shape, count, seed, source)


def edit_source(content: bytes, size: str | None, what: Served, param: str) -> np.ndarray:
    """The image to edit, in the size of the result: the given one, or the nearest that edits were trained on."""
    sizes = what.edit_sizes
    if size is not None and size != "auto":
        sizes = (size_of(size, sizes),)
    return media.image(content, sizes, what, param)


def image_rows(
    model: Tuna, what: Served, body: ImageRequest, sources: Sequence[bytes] | None, seed: int
) -> list[PictureRow]:
    """The rows of `/v1/images/generations`, or with sources of `/v1/images/edits`."""
    require("image" if sources is None else "edit", what)
    partials = (body.partial_images or 0) if body.stream else 0
    progress = bool(body.stream and body.stream_options and body.stream_options.include_progress)
    source = None
    if sources is not None:
        if len(sources) != 1:
            message = f"{len(sources)} images were given; this model edits one at a time"
            raise errors.invalid("image", message, "too_many_media")
        source = edit_source(sources[0], body.size, what, "image")
        shape = (1, *source.shape[1:3])
    else:
        shape = (1, *size_of(body.size, what.sizes))
    options: Mapping[str, Any] = {"partials": partials, "progress": progress}
    count = count_of(body.n, what)
    return picture_rows(model, what, body, body.prompt, shape, count, seed, source, **options)
