"""Generates and edits images, generates video, answers questions and chats, with a trained or converted model.

Examples:

    # Images; prompt_0.png, prompt_1.png, ... and a contact sheet go to the output folder:
    tuna-jax generate --model=runs/demo --output=pictures \\
        --prompt="a red apple on a blue background" --prompt="two cats on a green background"

    # One prompt per line of a file, another seed, stronger guidance, a negative prompt:
    tuna-jax generate --model=runs/demo --prompts=prompts.txt --seed=3 --guidance=3 --negative="a dog"

    # Guidance only in the middle of the trajectory, which is faster:
    tuna-jax generate --model=runs/demo --prompt="a dog" --guidance=3 --guidance_interval=0.1,0.9

    # Text about an image (of any size; it is scaled to the nearest of the shapes that the model was trained on, and
    # cropped by what is left over), about several, about a video:
    tuna-jax generate --model=runs/demo --image=photo.png --question="what is this?"
    tuna-jax generate --model=model/ --image=a.png --image=b.png --question="what differs?"
    tuna-jax generate --model=model/ --video=clip.mp4 --question="what happens?"

    # An edited image, edit_0.png; a clip of 1 + 4k frames, video_0.mp4:
    tuna-jax generate --model=model/ --task=edit --image=photo.png --prompt="make the background blue"
    tuna-jax generate --model=model/ --task=t2v --prompt="a cat grows" --frames=17 --size=320x512

    # One image of several, with a guidance scale of the images next to that of the text; a clip from its first frame:
    tuna-jax generate --model=model/ --task=edit --image=a.png --image=b.png --image_guidance=1.5 \\
        --prompt="put the dog to the left of the cat"
    tuna-jax generate --model=model/ --task=t2v --image=first.png --prompt="it moves to the right"

    # A conversation, one turn per --question; its file lets a later call continue it:
    tuna-jax generate --model=model/ --task=chat --image=a.png --question="what is this?" --question="why?"
    tuna-jax generate --model=model/ --task=chat --history=answers/conversation.json --question="and then?"

    # Words as they are decoded, even if the output is not a terminal:
    tuna-jax generate --model=model/ --image=a.png --question="what is this?" --stream

    # A question about the text <image> itself, which would mark the place of an image:
    tuna-jax generate --model=model/ --image=page.png --question="what does the \\<image> tag mean?"

    # Many requests in one file, with JSON lines such as {"prompt": "a dog", "negative": "a cat", "seed": 7},
    # {"prompt": "make it blue", "image": "a.png"} or {"question": "what is this?", "image": ["a.png"]}:
    tuna-jax generate --model=model/ --task=edit --prompts=edits.jsonl

    # A conversation as JSON, whose content may be parts, where nothing needs a backslash:
    # {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "hi"}]}]}
    tuna-jax generate --model=model/ --task=chat --prompts=chats.jsonl

    # A converted model whose VAE and tokenizer are stored separately:
    tuna-jax generate --model=model/ --vae=Wan2.2_VAE.safetensors --tokenizer=Qwen2.5-1.5B-Instruct/ --prompt="a cat"

A request of a file whose image cannot be read, or whose result is not finite, fails individually: the others are
written, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from tuna_jax.cli import parsing, shared_flags
from tuna_jax.inference.requests import GENERATION_TASKS, TASKS, Request, read_requests
from tuna_jax.utils import malloc

_GENERATION = ("prompt", "prompts", "negative", "size", *shared_flags.SAMPLING)
_TEXT = ("question", "prompts", "image", "video", "frames", "max_new_tokens", "temperature")
_TEXT = (*_TEXT, "top_k", "top_p", "template", "stream")
# The flags that each task reads, besides those that all tasks read.
_READS = {
    "t2i": _GENERATION,
    "edit": (*_GENERATION, "image", "image_guidance"),
    "t2v": (*_GENERATION, "image", "image_guidance", "frames", "fps"),
    "understand": _TEXT,
    "chat": (*_TEXT, "history"),
}
_COMMON = {"model", "adapter", "vae", "tokenizer", "mesh", "task", "output", "seed", "batch_size"}
_COMMON |= {"tile_above", "programs", "verbosity", "check_weights"}
_OUTPUTS = {"t2i": "pictures", "edit": "pictures", "t2v": "videos"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(parsing.current_arguments("generate", arguments))
    task = options.task or _infer(options, parser)
    _check(options, task, parser)
    return parsing.run_on_all_processes(lambda: _generate(options, task), options.verbosity)


def _parser() -> argparse.ArgumentParser:
    parser = parsing.make_parser("generate", __doc__)
    shared_flags.add_model(parser)
    add = parser.add_argument
    add(
        "--task",
        choices=TASKS,
        help="t2i: text to image; edit; t2v: text to video; understand: answer about media; chat "
        "(default: inferred from the other flags)",
    )
    add(
        "--output",
        metavar="DIR",
        help="output folder (default: pictures, videos or answers, by the task)",
    )
    add(
        "--seed",
        type=parsing.seed,
        default=0,
        help="whole number from 0 to 2**64 - 1; result i depends on (seed, i) (default 0)",
    )
    add("--batch_size", type=parsing.positive_int, metavar="N", help="largest batch")
    add(
        "--programs",
        metavar="DIR",
        help="programs that `tuna-jax export` wrote for this model, so that nothing is traced",
    )
    add(
        "--tile_above",
        type=parsing.positive_int,
        metavar="PIXELS",
        help="larger frames go through the VAE in overlapping tiles, to save memory (default 1048576)",
    )
    add(
        "--prompts",
        metavar="FILE",
        help="one request per line: text, or JSON in a .jsonl file (paths are relative to it)",
    )

    generation = parser.add_argument_group("t2i, edit, t2v")
    add = generation.add_argument
    add(
        "--prompt",
        action="append",
        type=parsing.text,
        help="what to generate, or how to edit; may be given several times",
    )
    add("--negative", metavar="PROMPT", type=parsing.text, help="negative prompt")
    add(
        "--size",
        type=parsing.image_size,
        metavar="HxW",
        help="height x width in pixels, multiples of 16, such as 320x512, or the side of a square "
        "(default: the model's)",
    )
    shared_flags.add_sampling(generation)
    add(
        "--image_guidance",
        type=parsing.finite,
        metavar="G",
        help="guidance scale of the images that an edit or a clip is given; another one than 1 takes three branches "
        "per step in place of two (default 1)",
    )
    add("--fps", type=parsing.positive, help="frames per second of a written video (default 8)")

    text = parser.add_argument_group("understand, chat")
    add = text.add_argument
    add(
        "--question",
        action="append",
        type=parsing.text,
        help="question; may be given several times; \\<image> in it is the text <image>",
    )
    add(
        "--image",
        action="append",
        metavar="FILE",
        help="image that a question is about or that is edited (may be given several times), or a clip's first frame",
    )
    add(
        "--video",
        metavar="FILE",
        help="video, animated picture or folder of frames that a question is about",
    )
    add(
        "--frames",
        type=parsing.positive_int,
        metavar="N",
        help="1 + 4k frames: to generate, or at most to read of a video (default 17)",
    )
    add("--history", metavar="FILE", help="conversation.json of an earlier chat to continue")
    add(
        "--max_new_tokens",
        type=parsing.positive_int,
        metavar="N",
        help="longest answer in tokens (default 128)",
    )
    add("--temperature", type=parsing.finite, help="sampling temperature; 0 is greedy (default 0)")
    add(
        "--top_k",
        type=int,
        metavar="K",
        help="sample among the K most likely tokens; 0: among all (default 0)",
    )
    add(
        "--top_p",
        type=parsing.finite,
        metavar="P",
        help="sample within this cumulative probability (default 1)",
    )
    add(
        "--template",
        choices=("chat", "plain"),
        help="how a question is put (default: as in the model's training)",
    )
    add(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="print words as they are decoded, one answer after another (default: in a terminal, unless several "
        "answers can share a batch)",
    )
    return parser


def _infer(options: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """The task that the flags imply."""
    if options.question and options.prompt:
        parser.error("--prompt generates and --question asks; choose with --task=")
    if options.question:
        return "understand" if options.image or options.video else "chat"
    if options.image or options.video:
        if options.image and (options.prompt or options.prompts):
            return "t2v" if options.frames or options.fps else "edit"
        parser.error(
            "--image and --question go together, or --video and --question; --image and --prompt edit an image, and "
            "with --frames they make a clip that begins with it"
        )
    if not (options.prompt or options.prompts):
        parser.error("give --prompt= or --prompts=FILE to generate, or --image= and --question=")
    return "t2i"


def _check(options: argparse.Namespace, task: str, parser: argparse.ArgumentParser) -> None:
    """Exits with a message if the flags contradict the task or each other."""
    for name, value in vars(options).items():
        if value is not None and name not in _COMMON and name not in _READS[task]:
            parser.error(f"--{name} has no effect with --task={task}")
    prompts = options.prompt if task in GENERATION_TASKS else options.question
    if not prompts and not options.prompts:
        parser.error(
            f"--task={task} requires {'--prompt=' if task in GENERATION_TASKS else '--question='} or --prompts=FILE"
        )
    if options.image and options.video:
        parser.error("--image and --video cannot be combined; give one of them")
    per_line = (options.prompts or "").endswith(".jsonl")
    if task == "edit" and not per_line and not options.image:
        parser.error(
            "--task=edit changes one image, or makes one of several: give each with --image=FILE"
        )
    if task == "t2v" and len(options.image or ()) > 1:
        parser.error("a clip has one first frame: give one --image=FILE")
    if options.image_guidance is not None and not options.image and not per_line:
        parser.error("--image_guidance guides by the images that are given: give --image=FILE")
    if task == "understand" and not per_line and not (options.image or options.video):
        parser.error(
            "--task=understand requires --image=FILE or --video=FILE; --task=chat needs neither"
        )
    if options.history and options.prompts:
        parser.error("--history continues one conversation with --question; drop --prompts")


def _generate(options: argparse.Namespace, task: str) -> int:
    requests = _requests(options, task)
    settings = _settings(options, task)

    from tuna_jax.inference import run_requests

    history = run_requests.read_history(options.history) if options.history else None
    model = shared_flags.load_model(options, programs=options.programs)
    if options.tile_above:
        model = dataclasses.replace(model, tile_above=options.tile_above)
    options.output = options.output or _OUTPUTS.get(task, "answers")
    with shared_flags.in_buckets(options, "output"):
        return _write(options, task, model, requests, settings, history)


def _write(
    options: argparse.Namespace,
    task: str,
    model: Any,
    requests: list[Request],
    settings: dict[str, Any],
    history: Any,
) -> int:
    """Writes the results; the exit status is 1 if a request failed."""
    from tuna_jax.inference import run_requests

    common = (model, requests, options.output)
    failures: list[str] = []
    if task != "chat" or options.prompts:
        settings["on_failure"] = lambda index, error: failures.append(str(error))
    if task in ("t2i", "edit"):
        run_requests.generate_images(*common, edit=task == "edit", **settings)
    elif task == "t2v":
        run_requests.generate_clips(*common, **settings)
    else:
        is_conversation = task == "chat" and not options.prompts
        stream = options.stream
        if stream is None:
            stream = sys.stdout.isatty() and (is_conversation or len(requests) == 1)
        settings["write"] = _print_part if stream else None
        if is_conversation:
            run_requests.converse(*common, history=history, **settings)
        else:
            run_requests.write_answers(*common, **settings)
    for failure in failures[:10]:
        print(f"error: {failure}", file=sys.stderr)
    if len(failures) > 1:
        print(f"error: {len(failures)} of {len(requests)} requests failed", file=sys.stderr)
    return 1 if failures else 0


_NOT_SETTINGS = ("prompt", "prompts", "question", "image", "video", "history", "stream")


def _settings(options: argparse.Namespace, task: str) -> dict[str, Any]:
    """The options of the task's calls, checked before a model is loaded.

    Raises:
      ValueError: a value that means nothing, named.
    """
    from tuna_jax.inference import option_checks

    names = [name for name in (*_READS[task], "batch_size") if name not in _NOT_SETTINGS]
    settings = {name: getattr(options, name) for name in names}
    settings = {name: value for name, value in settings.items() if value is not None}
    settings["seed"] = options.seed
    checks = option_checks.SAMPLING if task in GENERATION_TASKS else option_checks.DECODING
    frames_and_fps = {"frames": option_checks.frames, "fps": option_checks.fps}
    for name, check in frames_and_fps.items():
        if name in settings:
            check(settings[name])
    option_checks.check(
        {name: value for name, value in settings.items() if name not in frames_and_fps}, checks
    )
    return settings


def _print_part(text: str) -> None:
    print(text, end="", flush=True)


def _requests(options: argparse.Namespace, task: str) -> list[Request]:
    """The requests of the flags, then those of the file; flags fill in what a line leaves out."""
    prompts = (options.prompt if task in GENERATION_TASKS else options.question) or []
    requests = [Request(text=text) for text in prompts]
    if options.prompts:
        requests += read_requests(options.prompts, task)
    media = tuple(options.image or ()) or ((options.video,) if options.video else ())
    kind = "video" if options.video else "image" if options.image else ""
    return [
        request
        if request.media or request.messages
        else dataclasses.replace(request, media=media, kind=kind)
        for request in requests
    ]


if __name__ == "__main__":
    malloc.keep()
    sys.exit(main())
