"""Runs requests and writes their results to files: images, clips, answers and conversations."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tuna_jax.data.media.video import import_av, write_video
from tuna_jax.data.text.tokenizer import IMAGE_TAG
from tuna_jax.inference.batching import Seed
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.generation_config import DecodingOptions, SamplingOptions
from tuna_jax.inference.media_inputs import of_kind
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.inference.requests import Request
from tuna_jax.utils.image_grid import contact_sheet
from tuna_jax.utils.text_files import check_texts, json_line, read_json

Log = Callable[[str], None]
Write = Callable[[str], object]


def generate_images(
    model: Tuna,
    requests: Sequence[Request],
    folder: str | Path,
    *,
    edit: bool = False,
    seed: int = 0,
    log: Log = print,
    **options: Any,
) -> list[Path]:
    """Writes an image per request as PNG, `prompt_0.png` and so on (`edit_0.png` of an edit), and all as `sheet.png`.

    Args:
      model: the model.
      requests: prompts, or instructions with one image each.
      folder: created if it does not exist; files of the same name are overwritten.
      edit: whether the requests edit their image.
      seed: seed of the requests without their own.
      log: called with a line per file.
      **options: see `SamplingOptions`; `negative` is for requests without their own.

    Returns:
      The image files, in the order of the requests.

    Raises:
      ValueError: an edit has no image or several, and the errors of `Tuna.generate_image` and `edit_image`.
    """
    prompts = [request.text for request in requests]
    sampling = _sampling(requests, seed, options)
    if edit:
        for request in requests:
            if len(request.media) != 1:
                raise ValueError(
                    f"the edit {request.text!r} has {len(request.media)} images; it requires one: --image=FILE, or "
                    f"'image' in its line"
                )
        images = model.edit_image([request.media[0] for request in requests], prompts, **sampling)
    else:
        images = model.generate_image(prompts, **sampling)
    folder = _create(folder)
    name = "edit" if edit else "prompt"
    paths = [folder / f"{name}_{index}.png" for index in range(len(prompts))]
    for path, prompt, image in zip(paths, prompts, images, strict=True):
        Image.fromarray(image).save(path)
        log(f"{path}: {prompt}")
    contact_sheet(images, prompts).save(folder / "sheet.png")
    log(str(folder / "sheet.png"))
    return paths


def generate_clips(
    model: Tuna,
    requests: Sequence[Request],
    folder: str | Path,
    *,
    frames: int = 17,
    fps: float = 8.0,
    seed: int = 0,
    log: Log = print,
    **options: Any,
) -> list[Path]:
    """Writes a clip per request as MP4, `video_0.mp4` and so on.

    Args:
      model, requests, folder, seed, log, **options: see `generate_images`.
      frames: frames per clip, 1 + 4k.
      fps: frames per second.

    Returns:
      The video files, in the order of the requests.

    Raises:
      ModuleNotFoundError: `av`, which writes MP4, is not installed.
      ValueError: see `Tuna.generate_video`.
    """
    import_av("an MP4")  # Fails before time is spent on sampling.
    prompts = [request.text for request in requests]
    videos = model.generate_video(prompts, frames=frames, **_sampling(requests, seed, options))
    folder = _create(folder)
    paths = [folder / f"video_{index}.mp4" for index in range(len(prompts))]
    for path, prompt, video in zip(paths, prompts, videos, strict=True):
        write_video(path, video, fps)
        log(f"{path}: {prompt}")
    return paths


def write_answers(
    model: Tuna,
    requests: Sequence[Request],
    folder: str | Path,
    *,
    frames: int = 17,
    seed: int = 0,
    log: Log = print,
    write: Write | None = None,
    **options: Any,
) -> Path:
    """Answers questions, or writes the next message of conversations, and stores them as `answers.jsonl`.

    Args:
      model: the model.
      requests: each a question or a conversation.
      folder: created if it does not exist; `answers.jsonl` there has a line per request: media, messages and answer.
      frames: the largest number of frames taken of a video file.
      seed: seed of the requests without their own.
      log: called with each answer, unless `write` is given.
      write: called with the parts of an answer as they are decoded, and with a newline after each answer. The requests
        then run one after another instead of in one batch.
      **options: see `DecodingOptions`.

    Returns:
      The file.
    """
    conversations = [_conversation(model, request, frames) for request in requests]
    decoding: DecodingOptions = {**options, "seed": _seeds(requests, seed)}  # pyright: ignore[reportAssignmentType]
    if write is None:
        answers = model.reply(conversations, **decoding)
    else:
        seeds = [
            (seed, index) if request.seed is None else request.seed
            for index, request in enumerate(requests)
        ]
        answers = [
            _stream(model, conversation, write, {**decoding, "seed": [own_seed]})
            for conversation, own_seed in zip(conversations, seeds, strict=True)
        ]
    path = _create(folder) / "answers.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for request, conversation, answer in zip(requests, conversations, answers, strict=True):
            line = {"media": request.media, "messages": conversation.messages, "answer": answer}
            file.write(json_line(line))
            if write is None:
                log(answer)
    return path


def converse(
    model: Tuna,
    requests: Sequence[Request],
    folder: str | Path,
    *,
    history: Request | None = None,
    frames: int = 17,
    seed: int = 0,
    log: Log = print,
    write: Write | None = None,
    **options: Any,
) -> Path:
    """Holds one conversation: the requests are the user's messages in turn, and the model sees all earlier messages.

    Args:
      model: the model.
      requests: the user's messages; the media of the first one precede it.
      folder: created if it does not exist; gets `conversation.json`, which `read_history` reads to continue.
      history: a conversation to continue.
      frames, seed, log, write, **options: see `write_answers`.

    Returns:
      The file.

    Raises:
      ValueError: both the history and a request have media, and the errors of `Tuna.reply`.
    """
    earlier = history or Request()
    if earlier.media and any(request.media for request in requests):
        raise ValueError(
            "the history already has media; ask about them, or start a new conversation"
        )
    media, kind = (
        (earlier.media, earlier.kind) if earlier.media else (requests[0].media, requests[0].kind)
    )
    loaded_media = tuple(model.load_media(of_kind(media, kind), frames))
    messages = list(earlier.messages)
    for index, request in enumerate(requests):
        tags = f"{IMAGE_TAG}\n" * len(request.media) if index == 0 else ""
        messages.append({"role": "user", "content": tags + request.text})
        decoding: DecodingOptions = {**options, "seed": [(seed, len(messages))]}  # pyright: ignore[reportAssignmentType]
        conversation = Conversation(tuple(messages), loaded_media)
        if write is None:
            answer = model.reply([conversation], **decoding)[0]
            log(answer)
        else:
            answer = _stream(model, conversation, write, decoding)
        messages.append({"role": "assistant", "content": answer})
    path = _create(folder) / "conversation.json"
    values = {"media": media, **({"kind": kind} if kind else {}), "messages": messages}
    text = json.dumps(values, ensure_ascii=False, indent=2) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")  # Names that are not UTF-8.
    return path


def read_history(path: str | Path) -> Request:
    """Reads a conversation that `converse` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not a conversation.
    """
    try:
        values = read_json(path)
        media = values["shown" if "shown" in values else "media"]  # Earlier versions wrote "shown".
        if not isinstance(media, list) or not all(isinstance(item, str) for item in media):
            raise ValueError("'media' is not a list of files")
        _check_messages(values["messages"])
        check_texts(values, str(path))
        kind, messages = values.get("kind", ""), tuple(values["messages"])
        if kind not in ("", "image", "video"):
            raise ValueError(f"'kind' is {kind!r}, neither image nor video")
        return Request(media=tuple(media), kind=kind, messages=messages)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a conversation that --task=chat wrote: {error!r}"
        ) from error


def _check_messages(messages: Any) -> None:
    """Raises ValueError if the value is not a list of messages."""
    for message in messages if isinstance(messages, list) else [messages]:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError("'messages' is not a list of objects with 'role' and 'content'")
        if not isinstance(message.get("content"), (str, list)):
            raise ValueError(f"the content of a message by the {message['role']} is not a text")


def _stream(model: Tuna, conversation: Conversation, write: Write, options: DecodingOptions) -> str:
    """The answer to a conversation, whose parts are written as they are decoded."""
    parts = []
    for part in model.stream(conversation, **options):
        write(part)
        parts.append(part)
    write("\n")
    return "".join(parts)


def _conversation(model: Tuna, request: Request, frames: int) -> Conversation:
    media = model.load_media(of_kind(request.media, request.kind), frames)
    if request.messages:
        return Conversation(request.messages, tuple(media))
    return Conversation.of(media, request.text)


def _sampling(requests: Sequence[Request], seed: int, options: dict[str, Any]) -> SamplingOptions:
    """The options of one call that generates for all requests."""
    default = options.get("negative") or ""
    negatives = [default if request.negative is None else request.negative for request in requests]
    sampling = {**options, "seed": _seeds(requests, seed)}
    return sampling | {"negative": negatives if any(negatives) else None}  # pyright: ignore[reportReturnType]


def _seeds(requests: Sequence[Request], seed: int) -> Seed:
    """The seeds of one call: a request's own seed, or the command's seed with the request's index."""
    if all(request.seed is None for request in requests):
        return seed
    return [
        (seed, index) if request.seed is None else request.seed
        for index, request in enumerate(requests)
    ]


def _create(folder: str | Path) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
