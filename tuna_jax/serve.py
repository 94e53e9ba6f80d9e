"""Serves a model over HTTP, at the endpoints that OpenAI's clients know: chat, images, edits, videos.

Examples:

    # On this machine, port 8000:
    tuna-jax serve --model=runs/demo

    # A converted model, for other machines, with keys (one per line of the file, or in TUNA_JAX_API_KEYS):
    tuna-jax serve --model=model/ --host=0.0.0.0 --port=80 --api_keys=keys.txt

    # Only answers, of up to 512 tokens, to prompts of up to 1,024 tokens besides their images:
    tuna-jax serve --model=model/ --tasks=chat --max_new_tokens=512 --prompt_tokens=64,256,1024

    # More results together on a large device; clips of 17 and of 49 frames; images of two sizes:
    tuna-jax serve --model=model/ --text_slots=64 --image_slots=32 --frames=17,49 --sizes=512x512,320x512

    # Ask it; docs/serving.md has the same in Python:
    curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
        -d '{"messages": [{"role": "user", "content": "hello"}]}'

Everything is compiled before the server is ready (GET /health is 503 until then), and kept on disk for the next start.
Requests for other shapes are refused: GET /v1/models lists those that are served. SIGTERM lets requests under way
finish, and ends the server with status 0. The server needs the packages of `pip install 'tuna_jax[serve]'`.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
from collections.abc import Sequence

from tuna_jax.cli import parsing, shared_flags
from tuna_jax.utils import malloc

_TASKS = ("chat", "image", "edit", "video")
_PACKAGES = ("fastapi", "uvicorn", "multipart", "prometheus_client", "httpcore")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    options = _parser().parse_args(parsing.current_arguments("serve", arguments))
    return parsing.run_on_all_processes(lambda: _serve(options), options.verbosity)


def _parser() -> argparse.ArgumentParser:
    parser = parsing.make_parser("serve", __doc__)
    shared_flags.add_model(parser)
    shared_flags.add_dtype(parser)
    add = parser.add_argument
    add(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine)"
    )
    add("--port", type=_port, default=8000, help="port to listen on; 0: a free one (default 8000)")
    add("--name", default="tuna", help="the model's name at the endpoints (default tuna)")
    add(
        "--api_keys",
        metavar="FILE",
        help="file with an API key per line; also from the variable TUNA_JAX_API_KEYS, separated by commas (default: "
        "no keys)",
    )
    shapes = parser.add_argument_group("what is compiled before the server is ready")
    add = shapes.add_argument
    add(
        "--tasks",
        type=parsing.names,
        default=(),
        metavar="TASK,...",
        help=f"what is served, of {', '.join(_TASKS)} (default: all that the model can do)",
    )
    add(
        "--sizes",
        type=parsing.image_sizes,
        default=(),
        metavar="HxW,...",
        help="sizes of generated images and clips, height x width (default: the model's)",
    )
    add(
        "--frames",
        type=_ascending,
        default=(),
        metavar="N,...",
        help="numbers of frames of clips, generated or in questions, 1 + 4k each (default 17; 4 of a model whose VAE "
        "works frame by frame)",
    )
    add(
        "--prompt_tokens",
        type=_ascending,
        default=(64, 256),
        metavar="N,...",
        help="text tokens that conversations are padded to; the last one is the limit (default 64,256)",
    )
    add(
        "--image_prompt_tokens",
        type=_ascending,
        default=(32, 256),
        metavar="N,...",
        help="the same of prompts of images and clips (default 32,256)",
    )
    numbers = {
        "text_slots": (16, "answers that are decoded together"),
        "image_slots": (8, "images of one size that are sampled together"),
        "clip_slots": (4, "clips of one shape that are sampled together"),
        "max_new_tokens": (256, "longest answer in tokens"),
        "max_images": (4, "input images of a conversation"),
    }
    for name, (default, text) in numbers.items():
        add(
            f"--{name}",
            type=parsing.positive_int,
            default=default,
            metavar="N",
            help=f"{text} (default {default})",
        )
    limits = parser.add_argument_group("limits")
    add = limits.add_argument
    numbers = {
        "queue": (256, "results that may wait; more are refused with status 429"),
        "max_results": (10, "largest n of a request"),
        "max_steps": (200, "solver steps of a request"),
        "max_bytes": (32 << 20, "bytes of a request"),
        "max_pixels": (40_000_000, "pixels of an input image or frame"),
        "max_video_frames": (20_000, "frames of an input video"),
    }
    for name, (default, text) in numbers.items():
        add(
            f"--{name}",
            type=parsing.positive_int,
            default=default,
            metavar="N",
            help=f"{text} (default {default})",
        )
    add(
        "--deadline",
        type=parsing.positive,
        default=600.0,
        metavar="SECONDS",
        help="time of a request, waiting included (default 600)",
    )
    add(
        "--drain",
        type=parsing.positive,
        default=30.0,
        metavar="SECONDS",
        help="time that requests under way have after SIGTERM (default 30)",
    )
    add(
        "--allow_origins",
        type=parsing.names,
        default=(),
        metavar="ORIGIN,...",
        help="web pages of these origins may send requests from browsers (default: only the server's own)",
    )
    add(
        "--allow_remote_media",
        type=parsing.names,
        default=(),
        metavar="HOST,...",
        help="hosts (HOST, HOST:PORT or *.HOST) whose images and videos are fetched when a conversation has their "
        "addresses; never from private addresses (default: none, only data URLs are read)",
    )
    add(
        "--log_requests",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="write texts of requests to the log (default: no)",
    )
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or len(text) > 5 or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give a number from 0 to 65535")
    return int(text)


def _ascending(text: str) -> tuple[int, ...]:
    numbers = tuple(parsing.positive_ints(text))
    if list(numbers) != sorted(set(numbers)):
        raise argparse.ArgumentTypeError(f"{text!r} does not ascend")
    return numbers


def _serve(options: argparse.Namespace) -> int:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"the server needs the package {missing[0]}: pip install 'tuna_jax[serve]'"
        )
    import dataclasses

    from tuna_jax.serving import app, device, guard, run
    from tuna_jax.serving.settings import Settings

    level = logging.INFO if options.verbosity else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", stream=sys.stderr)
    names = [field.name for field in dataclasses.fields(Settings) if hasattr(options, field.name)]
    local = options.host in guard.LOCAL
    settings = Settings(only_local=local, **{name: getattr(options, name) for name in names})
    keys = guard.read_keys(options.api_keys)
    warning = guard.warn_of_open_server(options.host, keys)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    device.leave_signals_to_process_0()
    model = shared_flags.load_model(options, dtype=options.dtype)
    server = app.Server(model, settings, keys)
    print(f"compiling what is served ({', '.join(server.served.tasks)}) ...", flush=True)
    return run.run(
        server,
        options.host,
        options.port,
        lambda url: print(f"ready: {url} (model {settings.name!r})", flush=True),
    )


if __name__ == "__main__":
    malloc.keep()
    sys.exit(main())
