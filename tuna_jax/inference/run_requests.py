"""Runs requests and writes their results to files: images, clips, answers and conversations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tuna_jax.data.media.video import import_av, write_video
from tuna_jax.data.text.messages import IMAGE_TAG, escape
from tuna_jax.inference import images as image_calls
from tuna_jax.inference import option_checks
from tuna_jax.inference.batching import Seed
from tuna_jax.inference.conversation import Conversation, check_messages, media_of
from tuna_jax.inference.generation_config import DecodingOptions
from tuna_jax.inference.media_inputs import of_kind
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.inference.request_failures import OnFailure, finite_results, one_request
from tuna_jax.inference.requests import Request
from tuna_jax.utils.image_grid import contact_sheet
from tuna_jax.utils.text_files import check_texts, json_line, json_text, read_json

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
    on_failure: OnFailure | None = None,
    **options: Any,
) -> list[Path]:
    """Writes an image per request as PNG, `prompt_0.png` and so on (`edit_0.png` of an edit), and all as `sheet.png`.

    Args:
      model: the model.
      requests: prompts, or instructions with one or several images each. Without `size` in `options`, an edit has the
        shape nearest to its first image's among those that edits were trained on.
      folder: created if it does not exist; files of the same name are overwritten.
      edit: whether the requests edit their image.
      seed: seed of the requests without their own.
      log: called with a line per file.
      on_failure: called for a request whose image cannot be read, or whose result is not finite; None raises the
        reason.
      **options: see `SamplingOptions`; `negative` is for requests without their own.

    Returns:
      The image files, in the order of the requests.

    Raises:
      ValueError: an edit has no image, and the errors of `Tuna.generate_image` and `edit_image`.
    """
    if edit:
        for request in requests:
            if not request.media:
                where = f"{request.where}: " if request.where else ""
                raise ValueError(
                    f"{where}the edit {request.text!r} has no image; it requires one or several: "
                    f"--image=FILE, or 'image' in its line"
                )
    images: dict[int, np.ndarray] = {}
    everything = [_Group(list(range(len(requests))), model.size, [])]
    groups = _groups(model, requests, "edit", options, on_failure) if edit else everything
    for group, size, sources in groups:
        sampling = _sampling(requests, seed, options, group)
        if edit:
            sampling["size"] = size
        prompts = [requests[index].text for index in group]
        call = functools.partial(model.edit_image, sources) if edit else model.generate_image
        images |= finite_results(
            requests, group, functools.partial(call, prompts, **sampling), on_failure
        )
    folder = _create(folder)
    name = "edit" if edit else "prompt"
    paths = []
    for index in sorted(images):
        paths.append(folder / f"{name}_{index}.png")
        Image.fromarray(images[index]).save(paths[-1])
        log(f"{paths[-1]}: {requests[index].text}")
    if images:
        _sheet(images, requests).save(folder / "sheet.png")
        log(str(folder / "sheet.png"))
    return paths


def _sheet(images: Mapping[int, np.ndarray], requests: Sequence[Request]) -> Image.Image:
    """A contact sheet; images of several shapes are centred on white."""
    indices = sorted(images)
    height, width = (max(images[index].shape[axis] for index in indices) for axis in (0, 1))
    sheet = np.full((len(indices), height, width, 3), 255, np.uint8)
    for row, index in zip(sheet, indices, strict=True):
        image = images[index]
        top, left = (height - image.shape[0]) // 2, (width - image.shape[1]) // 2
        row[top : top + image.shape[0], left : left + image.shape[1]] = image
    return contact_sheet(sheet, [requests[index].text for index in indices])


class _Group(NamedTuple):
    """Indices of requests that share a call, the size of their results, and the images of each."""

    indices: list[int]
    size: tuple[int, int]
    sources: list[list[np.ndarray]]


def _groups(
    model: Tuna,
    requests: Sequence[Request],
    task: str,
    options: Mapping[str, Any],
    on_failure: OnFailure | None,
) -> list[_Group]:
    """The requests with equally many images of one shape; `task` is that of `images.edit_size`."""
    groups: dict[Any, _Group] = {}
    for index, request in enumerate(requests):
        with one_request(requests, index, on_failure):
            media = list(request.media)
            size = options.get("size") or model.size
            if media and not options.get("size"):
                size = image_calls.edit_size(model, media, 1, task)
            sources = list(image_calls.load_sources(model, media, 1, size)[0]) if media else []
            size = size[0], size[1]
            group = groups.setdefault((size, len(media)), _Group([], size, []))
            group.indices.append(index)
            group.sources.append(sources)
    return list(groups.values())


def generate_clips(
    model: Tuna,
    requests: Sequence[Request],
    folder: str | Path,
    *,
    frames: int = 17,
    fps: float = 8.0,
    seed: int = 0,
    log: Log = print,
    on_failure: OnFailure | None = None,
    **options: Any,
) -> list[Path]:
    """Writes a clip per request as MP4, `video_0.mp4` and so on.

    Args:
      model, folder, seed, log, on_failure, **options: see `generate_images`.
      requests: prompts, those with an image begin with it.
      frames: frames per clip, 1 + 4k.
      fps: frames per second.

    Returns:
      The video files, in the order of the requests.

    Raises:
      ModuleNotFoundError: `av`, which writes MP4, is not installed.
      ValueError: a request has several images, and the errors of `Tuna.generate_video`.
    """
    for request in requests:
        if len(request.media) > 1:
            where = f"{request.where}: " if request.where else ""
            raise ValueError(
                f"{where}the clip {request.text!r} has {len(request.media)} images; give one, its first frame"
            )
    import_av("an MP4")  # Fails before time is spent on sampling.
    option_checks.fps(fps)
    videos: dict[int, np.ndarray] = {}
    for group, size, sources in _groups(model, requests, "i2v", options, on_failure):
        sampling = _sampling(requests, seed, options, group) | {"frames": frames}
        if sources[0]:
            sampling |= {"image": [image for images in sources for image in images], "size": size}
        prompts = [requests[index].text for index in group]
        call = functools.partial(model.generate_video, prompts, **sampling)
        videos |= finite_results(requests, group, call, on_failure)
    folder = _create(folder)
    paths = []
    for index, video in sorted(videos.items()):
        paths.append(folder / f"video_{index}.mp4")
        write_video(paths[-1], video, fps)
        log(f"{paths[-1]}: {requests[index].text}")
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
    on_failure: OnFailure | None = None,
    **options: Any,
) -> Path:
    """Answers questions, or writes the next message of conversations, and stores them as `answers.jsonl`.

    Args:
      model: the model.
      requests: each a question or a conversation.
      folder: created if it does not exist; `answers.jsonl` there has a line per request: media, messages and answer; in
        place of the answer of a request that failed, `error` with the reason.
      frames: the largest number of frames taken of a video file.
      seed: seed of the requests without their own.
      log: called with each answer, unless `write` is given.
      write: called with the parts of an answer as they are decoded, and with a newline after each answer. The requests
        then run one after another instead of in one batch.
      on_failure: called for a request whose media cannot be read, or whose answer is not finite; None raises the
        reason.
      **options: see `DecodingOptions`.

    Returns:
      The file.
    """
    conversations: dict[int, Conversation] = {}
    reasons: dict[int, str] = {}

    def failed(index: int, error: Exception) -> None:
        reasons[index] = str(error)
        if on_failure is not None:
            on_failure(index, error)

    report = None if on_failure is None else failed
    for index, request in enumerate(requests):
        with one_request(requests, index, report):
            conversation = _conversation(model, request, frames)
            model.prompt_tokens(conversation, options.get("template"))  # May not fit this one.
            conversations[index] = conversation
    own = {
        index: (seed, index) if request.seed is None else request.seed
        for index, request in enumerate(requests)
    }
    answers: dict[int, str] = {}
    group = list(conversations)
    if write is None and group:
        seeds = [own[index] for index in group]
        call = functools.partial(
            model.reply, [conversations[i] for i in group], **{**options, "seed": seeds}
        )
        answers = finite_results(requests, group, call, report)
    elif write is not None:
        for index in group:
            decoding: DecodingOptions = {**options, "seed": [own[index]]}  # pyright: ignore[reportAssignmentType]
            with one_request(requests, index, report):
                answers[index] = _stream(model, conversations[index], write, decoding)
    path = _create(folder) / "answers.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for index, request in enumerate(requests):
            messages = conversations[index].messages if index in conversations else request.messages
            line = {"media": request.media, "messages": messages}
            if index in answers:
                line["answer"] = answers[index]
                if write is None:
                    log(answers[index])
            else:
                line["error"] = reasons.get(index, "")
                line["messages"] = messages or [{"role": "user", "content": request.text}]
            file.write(json_line(line))
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
    has_media = earlier.media or (earlier.messages and media_of(earlier.messages, earlier.media))
    if has_media and any(request.media for request in requests):
        raise ValueError(
            "the history already has media; ask about them, or start a new conversation"
        )
    # Those of the history's messages, or of the first request.
    media, kind = (
        (earlier.media, earlier.kind) if earlier.media else (requests[0].media, requests[0].kind)
    )
    named = of_kind(media, kind)
    loaded_media = tuple(
        model.load_media(media_of(earlier.messages, named) if has_media else named, frames)
    )
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
        # The model may have written the tag as text.
        messages.append({"role": "assistant", "content": escape(answer)})
    path = _create(folder) / "conversation.json"
    values = {"media": media, **({"kind": kind} if kind else {}), "messages": messages}
    path.write_text(json_text(values, indent=2) + "\n", encoding="utf-8")
    return path


def read_history(path: str | Path) -> Request:
    """Reads a conversation that `converse` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not a conversation.
    """
    values = read_json(path)
    wrong = f"{path} is not a conversation that --task=chat wrote"
    if not isinstance(values, Mapping):
        raise ValueError(f"{wrong}: it holds a {type(values).__name__}")
    media = values.get("media", values.get("shown"))  # Earlier versions wrote "shown".
    if not isinstance(media, list) or not all(isinstance(file, str) for file in media):
        raise ValueError(f"{wrong}: 'media' must be a list of files")
    try:
        check_messages(values.get("messages"))
        check_texts(values, str(path))
        kind = option_checks.choice("kind", values.get("kind", ""), ("", "image", "video"))
    except ValueError as error:
        raise ValueError(f"{wrong}: {error}") from error
    return Request(media=tuple(media), kind=kind, messages=tuple(values["messages"]))


def _stream(model: Tuna, conversation: Conversation, write: Write, options: DecodingOptions) -> str:
    """The answer to a conversation, whose parts are written as they are decoded."""
    parts = []
    for part in model.stream(conversation, **options):
        write(part)
        parts.append(part)
    write("\n")
    return "".join(parts)


def _conversation(model: Tuna, request: Request, frames: int) -> Conversation:
    given = of_kind(request.media, request.kind)
    if request.messages:
        media = model.load_media(media_of(request.messages, given), frames)
        return Conversation(request.messages, tuple(media))
    return Conversation.of(model.load_media(given, frames), request.text)


def _sampling(
    requests: Sequence[Request], seed: int, options: Mapping[str, Any], group: Sequence[int]
) -> dict[str, Any]:
    """The options of one call that generates for a group of requests, given by their indices."""
    default = options.get("negative") or ""
    chosen = [requests[index] for index in group]
    negatives = [default if request.negative is None else request.negative for request in chosen]
    sampling = {**options, "seed": _seeds(requests, seed, group)}
    return sampling | {"negative": negatives if any(negatives) else None}


def _seeds(requests: Sequence[Request], seed: int, group: Sequence[int]) -> Seed:
    """The seeds of one call: a request's own seed, or the command's seed with the request's index."""
    everything = list(group) == list(range(len(requests)))
    if everything and all(request.seed is None for request in requests):
        return seed
    own = [(index, requests[index].seed) for index in group]
    return [(seed, index) if value is None else value for index, value in own]


def _create(folder: str | Path) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
