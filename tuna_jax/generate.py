"""Draws, edits, makes video, answers questions and chats, with a trained or converted model.

Examples:

    # Pictures; prompt_0.png, prompt_1.png, ... and a contact sheet go to the output folder:
    python -m tuna_jax.generate --model=runs/demo --output=pictures \\
        --prompt="a red apple on a blue background" --prompt="two cats on a green background"

    # A prompt a line from a file, another seed, more guidance, away from a negative prompt:
    python -m tuna_jax.generate --model=runs/demo --prompts=prompts.txt --seed=3 --guidance=3 --negative="a dog"

    # Guidance in the middle of the way alone, which is faster:
    python -m tuna_jax.generate --model=runs/demo --prompt="a dog" --guidance=3 --guidance_interval=0.1,0.9

    # Text about a picture (any size; it is scaled to the model's), about several, about a video:
    python -m tuna_jax.generate --model=runs/demo --image=picture.png --question="what is this?"
    python -m tuna_jax.generate --model=model/ --image=a.png --image=b.png --question="what differs?"
    python -m tuna_jax.generate --model=model/ --video=clip.mp4 --question="what happens?"

    # An edited picture, edit_0.png; a clip of 1 + 4k frames, video_0.mp4:
    python -m tuna_jax.generate --model=model/ --task=edit --image=picture.png --prompt="make the ground blue"
    python -m tuna_jax.generate --model=model/ --task=t2v --prompt="a cat grows" --frames=17 --size=320x512

    # A conversation: each --question in turn; its file lets a later call go on:
    python -m tuna_jax.generate --model=model/ --task=chat --image=a.png --question="what is this?" --question="why?"
    python -m tuna_jax.generate --model=model/ --task=chat --history=answers/conversation.json --question="and then?"

    # Words as they come, where the output is no terminal too:
    python -m tuna_jax.generate --model=model/ --image=a.png --question="what is this?" --stream

    # Many at once, with JSON lines such as {"prompt": "a dog", "negative": "a cat", "seed": 7},
    # {"prompt": "make it blue", "image": "a.png"} or {"question": "what is this?", "image": ["a.png"]}:
    python -m tuna_jax.generate --model=model/ --task=edit --prompts=edits.jsonl

    # What `convert from_torch` wrote, with a VAE and a tokenizer that lie apart:
    python -m tuna_jax.generate --model=model/ --vae=Wan2.2_VAE.safetensors \\
        --tokenizer=Qwen2.5-1.5B-Instruct/ --prompt="a cat"
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from tuna_jax.inference.requests import DRAWN, TASKS, Request, read_requests
from tuna_jax.utils import malloc

_DRAWING = ("prompt", "prompts", "negative", "size", "guidance", "guidance_interval", "steps")
_DRAWING = (*_DRAWING, "shift", "solver")
_WRITING = ("question", "prompts", "image", "video", "frames", "max_new_tokens", "temperature")
_WRITING = (*_WRITING, "top_k", "top_p", "template", "stream")
# The flags that each task reads, beside those that all do.
_READS = {
    "t2i": _DRAWING,
    "edit": (*_DRAWING, "image"),
    "t2v": (*_DRAWING, "frames", "fps"),
    "understand": _WRITING,
    "chat": (*_WRITING, "history"),
}
_OUTPUTS = {"t2i": "pictures", "edit": "pictures", "t2v": "videos"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    task = chosen.task or _infer(chosen, parser)
    _check(chosen, task, parser)
    try:
        _run(chosen, task)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tuna_jax.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="PATH",
        help="workdir of a trained run, its model.safetensors, or what `convert from_torch` wrote",
    )
    add("--vae", metavar="PATH", help="the VAE, if the model has none in it or another is wanted")
    add(
        "--tokenizer",
        metavar="PATH",
        help="folder of a Hugging Face tokenizer, or a compact vocabulary's name or file; by default the run's own, "
        "else Qwen2.5's",
    )
    add(
        "--task",
        choices=TASKS,
        help="text to image, edit, text to video, understand, chat; guessed where it is plain",
    )
    add("--output", metavar="DIR", help="by default pictures, videos or answers")
    add("--seed", type=int, default=0, help="result i depends on (seed, i) (default 0)")
    add("--batch_size", type=_positive, metavar="N", help="most requests at once")
    add(
        "--programs",
        metavar="DIR",
        help="programs that `python -m tuna_jax.export` wrote for this model, so that nothing is traced",
    )
    add(
        "--tile_above",
        type=_positive,
        metavar="PIXELS",
        help="frames of more pixels go through the VAE in overlapping tiles, to save memory (default 1048576)",
    )
    add(
        "--prompts",
        metavar="FILE",
        help="requests, a line each: text, or JSON in a .jsonl file (pictures lie beside it)",
    )

    drawn = parser.add_argument_group("t2i, edit, t2v")
    add = drawn.add_argument
    add("--prompt", action="append", help="what to draw, or to change; may be given several times")
    add("--negative", metavar="PROMPT", help="what not to draw")
    add(
        "--size",
        type=_size,
        metavar="HxW",
        help="height x width, multiples of 16, such as 320x512, or a square's side; by default the model's",
    )
    add("--guidance", type=float, metavar="SCALE", help="1 samples without guidance")
    add(
        "--guidance_interval",
        type=_interval,
        metavar="LOW,HIGH",
        help="guide only at times of the grid within it, 0 is noise and 1 is clean, such as 0.1,0.9; faster",
    )
    add("--steps", type=int, metavar="N", help="solver steps")
    add("--shift", type=float, help="of the time grid toward noise")
    add("--solver", choices=("euler", "heun"), help="how the flow is followed")
    add("--fps", type=float, help="frames a second of a written video (default 8)")

    written = parser.add_argument_group("understand, chat")
    add = written.add_argument
    add("--question", action="append", help="what to ask; may be given several times")
    add(
        "--image",
        action="append",
        metavar="FILE",
        help="picture to ask about, several times for several; or the one to edit",
    )
    add("--video", metavar="FILE", help="video to ask about")
    add(
        "--frames",
        type=int,
        metavar="N",
        help="1 + 4k: of a video to draw, or at most to look at (default 17)",
    )
    add("--history", metavar="FILE", help="conversation.json of an earlier chat, to go on with")
    add("--max_new_tokens", type=_positive, metavar="N", help="of an answer (default 128)")
    add("--temperature", type=float, help="0 takes the likeliest token (default 0)")
    add("--top_k", type=int, metavar="K", help="sample among the K likeliest; 0 among all")
    add("--top_p", type=float, metavar="P", help="sample within this much probability")
    add(
        "--template",
        choices=("chat", "plain"),
        help="how a question is put; by default as in the model's training",
    )
    add(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="print words as they come, one answer after another; by default in a terminal, unless there are several "
        "answers that can be made at once",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size; give HEIGHTxWIDTH in pixels, such as 320x512, or one side"
        )
    return int(sides[0]), int(sides[-1])


def _interval(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
        return low, high
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no interval; give LOW,HIGH, such as 0.1,0.9"
        ) from None


def _infer(chosen: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """The task that the flags speak of."""
    if chosen.question and chosen.prompt:
        parser.error("--prompt draws and --question asks; say which with --task=")
    if chosen.question:
        return "understand" if chosen.image or chosen.video else "chat"
    if chosen.image or chosen.video:
        if chosen.image and (chosen.prompt or chosen.prompts):
            return "edit"
        parser.error(
            "--image and --question go together, or --video and --question; --image and --prompt edit a picture"
        )
    if not (chosen.prompt or chosen.prompts):
        parser.error("give --prompt= or --prompts=FILE to draw, or --image= and --question=")
    return "t2i"


def _check(chosen: argparse.Namespace, task: str, parser: argparse.ArgumentParser) -> None:
    """Ends the program with a message if the flags do not fit the task or each other."""
    everywhere = {"model", "vae", "tokenizer", "task", "output", "seed", "batch_size"}
    everywhere |= {"tile_above", "programs"}
    for name, value in vars(chosen).items():
        if value is not None and name not in everywhere and name not in _READS[task]:
            parser.error(f"--{name} has no effect with --task={task}")
    said = chosen.prompt if task in DRAWN else chosen.question
    if not said and not chosen.prompts:
        parser.error(
            f"--task={task} wants {'--prompt=' if task in DRAWN else '--question='} or --prompts=FILE"
        )
    if chosen.image and chosen.video:
        parser.error("--image and --video cannot be shown together; give one of them")
    given_by_line = (chosen.prompts or "").endswith(".jsonl")
    if task == "edit" and not given_by_line and len(chosen.image or ()) != 1:
        parser.error("--task=edit changes one picture: give it with --image=FILE")
    if task == "understand" and not given_by_line and not (chosen.image or chosen.video):
        parser.error("--task=understand wants --image=FILE or --video=FILE; --task=chat wants none")
    if chosen.history and chosen.prompts:
        parser.error("--history goes on with one conversation, by --question; drop --prompts")


def _run(chosen: argparse.Namespace, task: str) -> None:
    requests = _requests(chosen, task)

    from absl import logging

    from tuna_jax.inference import run_requests
    from tuna_jax.inference.pipeline import Tuna
    from tuna_jax.utils import compile_cache

    logging.set_verbosity(logging.WARNING)
    compile_cache.enable()
    history = run_requests.read_history(chosen.history) if chosen.history else None
    model = Tuna.load(
        chosen.model, vae=chosen.vae, tokenizer=chosen.tokenizer, programs=chosen.programs
    )
    if chosen.tile_above:
        model = dataclasses.replace(model, tile_above=chosen.tile_above)
    options: dict[str, Any] = {
        name: getattr(chosen, name)
        for name in (*_READS[task], "batch_size")
        if name not in ("prompt", "prompts", "question", "image", "video", "history", "stream")
        and getattr(chosen, name) is not None
    }
    common = (model, requests, chosen.output or _OUTPUTS.get(task, "answers"))
    options["seed"] = chosen.seed
    if task in ("t2i", "edit"):
        run_requests.draw_pictures(*common, edit=task == "edit", **options)
    elif task == "t2v":
        run_requests.draw_clips(*common, **options)
    else:
        talks = task == "chat" and not chosen.prompts
        streams = chosen.stream
        if streams is None:
            streams = sys.stdout.isatty() and (talks or len(requests) == 1)
        options["write"] = _print_part if streams else None
        if talks:
            run_requests.converse(*common, history=history, **options)
        else:
            run_requests.write_answers(*common, **options)


def _print_part(text: str) -> None:
    print(text, end="", flush=True)


def _requests(chosen: argparse.Namespace, task: str) -> list[Request]:
    """What the flags ask for, then what the file does; what a line leaves open, the flags say."""
    said = (chosen.prompt if task in DRAWN else chosen.question) or []
    requests = [Request(text=text) for text in said]
    if chosen.prompts:
        requests += read_requests(chosen.prompts, task)
    shown = tuple(chosen.image or ()) or ((chosen.video,) if chosen.video else ())
    return [
        one if one.shown or one.messages else dataclasses.replace(one, shown=shown)
        for one in requests
    ]


if __name__ == "__main__":
    malloc.keep()
    sys.exit(main())
