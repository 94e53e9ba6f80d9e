"""Requests carried out: files in, files out."""

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
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.inference.requests import Request
from tuna_jax.utils.image_grid import contact_sheet

Say = Callable[[str], None]
Write = Callable[[str], object]


def generate_images(
    model: Tuna,
    requests: Sequence[Request],
    folder: str | Path,
    *,
    edit: bool = False,
    seed: int = 0,
    say: Say = print,
    **options: Any,
) -> list[Path]:
    """Pictures as PNG, `prompt_0.png` and so on (of an edit `edit_0.png`), and `sheet.png` of all.

    Args:
      model: who draws.
      requests: prompts, or instructions with a picture each.
      folder: made if absent; files of the same name are replaced.
      edit: whether requests are edits of the picture that each shows.
      seed: of requests without their own.
      say: gets a line a file.
      **options: see `SamplingOptions`; `negative` is for requests without their own.

    Returns:
      The pictures' files, in order.

    Raises:
      ValueError: an edit without its one picture, and what `Tuna.generate_image` and `edit_image` raise.
    """
    prompts = [request.text for request in requests]
    chosen = _sampling(requests, seed, options)
    if edit:
        for one in requests:
            if len(one.media) != 1:
                raise ValueError(
                    f"the edit {one.text!r} has {len(one.media)} pictures; it wants one: --image=FILE, or 'image' "
                    f"in its line"
                )
        pictures = model.edit_image([one.media[0] for one in requests], prompts, **chosen)
    else:
        pictures = model.generate_image(prompts, **chosen)
    folder = _made(folder)
    name = "edit" if edit else "prompt"
    paths = [folder / f"{name}_{index}.png" for index in range(len(prompts))]
    for path, prompt, picture in zip(paths, prompts, pictures, strict=True):
        Image.fromarray(picture).save(path)
        say(f"{path}: {prompt}")
    contact_sheet(pictures, prompts).save(folder / "sheet.png")
    say(str(folder / "sheet.png"))
    return paths


def generate_clips(
    model: Tuna,
    requests: Sequence[Request],
    folder: str | Path,
    *,
    frames: int = 17,
    fps: float = 8.0,
    seed: int = 0,
    say: Say = print,
    **options: Any,
) -> list[Path]:
    """Clips as MP4, `video_0.mp4` and so on; arguments as `generate_images`, `frames` (1 + 4k) and frames a second."""
    import_av("an MP4")  # Told before the time is spent.
    prompts = [request.text for request in requests]
    drawn = model.generate_video(prompts, frames=frames, **_sampling(requests, seed, options))
    folder = _made(folder)
    paths = [folder / f"video_{index}.mp4" for index in range(len(prompts))]
    for path, prompt, clip in zip(paths, prompts, drawn, strict=True):
        write_video(path, clip, fps)
        say(f"{path}: {prompt}")
    return paths


def write_answers(
    model: Tuna,
    requests: Sequence[Request],
    folder: str | Path,
    *,
    frames: int = 17,
    seed: int = 0,
    say: Say = print,
    write: Write | None = None,
    **options: Any,
) -> Path:
    """Answers to questions, or the next message of conversations, all in one batch.

    Args:
      model: who answers.
      requests: each a question or a conversation.
      folder: made if absent; gets `answers.jsonl` with a line a request: what was shown, the messages, the answer.
      frames: at most so many of a video.
      seed: of requests without their own.
      say: gets the answers.
      write: gets them in parts instead, as they come, and a line's end after each; they are then made one by one.
      **options: see `DecodingOptions`.

    Returns:
      The file.
    """
    asked = [_conversation(model, request, frames) for request in requests]
    chosen: DecodingOptions = {**options, "seed": _seeds(requests, seed)}  # pyright: ignore[reportAssignmentType]
    if write is None:
        answers = model.reply(asked, **chosen)
    else:
        seeds = [(seed, i) if one.seed is None else one.seed for i, one in enumerate(requests)]
        answers = [
            _written(model, one, write, {**chosen, "seed": [own]})
            for one, own in zip(asked, seeds, strict=True)
        ]
    path = _made(folder) / "answers.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for request, conversation, answer in zip(requests, asked, answers, strict=True):
            line = {"media": request.media, "messages": conversation.messages, "answer": answer}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            if write is None:
                say(answer)
    return path


def converse(
    model: Tuna,
    requests: Sequence[Request],
    folder: str | Path,
    *,
    history: Request | None = None,
    frames: int = 17,
    seed: int = 0,
    say: Say = print,
    write: Write | None = None,
    **options: Any,
) -> Path:
    """One conversation: the requests are said in turn, and the model sees all that was said before.

    Args:
      model: who answers.
      requests: the user's messages; what the first one shows stands before it.
      folder: made if absent; gets `conversation.json`, which `read_history` reads to go on.
      history: a conversation to go on with.
      frames, seed, say, write, **options: as `write_answers`.

    Returns:
      The file.
    """
    earlier = history or Request()
    if earlier.media and any(request.media for request in requests):
        raise ValueError("the history shows something already; ask about that, or begin anew")
    media = earlier.media or requests[0].media
    seen = tuple(model.see(media, frames))
    messages = list(earlier.messages)
    for place, request in enumerate(requests):
        tags = f"{IMAGE_TAG}\n" * len(request.media) if place == 0 else ""
        messages.append({"role": "user", "content": tags + request.text})
        chosen: DecodingOptions = {**options, "seed": [(seed, len(messages))]}  # pyright: ignore[reportAssignmentType]
        conversation = Conversation(tuple(messages), seen)
        if write is None:
            answer = model.reply([conversation], **chosen)[0]
            say(answer)
        else:
            answer = _written(model, conversation, write, chosen)
        messages.append({"role": "assistant", "content": answer})
    path = _made(folder) / "conversation.json"
    values = {"media": media, "messages": messages}
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return path


def read_history(path: str | Path) -> Request:
    """A conversation that `converse` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is no such conversation.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        return Request(media=tuple(values["media"]), messages=tuple(values["messages"]))
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no conversation that --task=chat wrote: {error!r}") from error


def _written(
    model: Tuna, conversation: Conversation, write: Write, options: DecodingOptions
) -> str:
    """The answer, which was written in parts as they came."""
    parts = []
    for part in model.stream(conversation, **options):
        write(part)
        parts.append(part)
    write("\n")
    return "".join(parts)


def _conversation(model: Tuna, request: Request, frames: int) -> Conversation:
    seen = model.see(request.media, frames)
    if request.messages:
        return Conversation(request.messages, tuple(seen))
    return Conversation.of(seen, request.text)


def _sampling(requests: Sequence[Request], seed: int, options: dict[str, Any]) -> SamplingOptions:
    """The options of one call that draws all requests."""
    usual = options.get("negative") or ""
    against = [usual if one.negative is None else one.negative for one in requests]
    chosen = {**options, "seed": _seeds(requests, seed)}
    return chosen | {"negative": against if any(against) else None}  # pyright: ignore[reportReturnType]


def _seeds(requests: Sequence[Request], seed: int) -> Seed:
    """A request's own seed draws what it would alone; the others count their places."""
    if all(one.seed is None for one in requests):
        return seed
    return [(seed, place) if one.seed is None else one.seed for place, one in enumerate(requests)]


def _made(folder: str | Path) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
