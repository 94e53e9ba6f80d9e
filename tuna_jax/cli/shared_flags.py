"""Flags that several commands share, declared once: the model with its VAE and tokenizer, the mesh, and sampling."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuna_jax.cli import parsing

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from tuna_jax.inference.pipeline import Tuna

SAMPLING = ("guidance", "guidance_interval", "steps", "shift", "solver")
"""Sampling options that a command line can give; each defaults to the model's own."""


def add_model(parser: Any, *, required: bool = True, mesh: bool = True) -> None:
    """Adds `--model`, `--adapter`, `--vae`, `--tokenizer` and, with `mesh`, `--mesh`; `load_model` reads them."""
    add = parser.add_argument
    add(
        "--model",
        required=required,
        type=parsing.model_path,
        metavar="PATH",
        help="workdir of a training run, its model.safetensors, or what `tuna-jax convert from_torch` wrote; or "
        "`emoji`, the small trained model in the package",
    )
    add(
        "--adapter",
        metavar="PATH",
        help="an adapter of this model, which is merged into it: workdir of a run with config.lora, or what `tuna-jax "
        "convert from_peft` wrote",
    )
    add("--vae", metavar="PATH", help="the VAE, if the model stores none or to use another")
    add(
        "--tokenizer",
        metavar="PATH",
        help="folder of a Hugging Face tokenizer, or name or file of a compact vocabulary "
        "(default: the run's own, otherwise Qwen2.5's)",
    )
    add(
        "--check_weights",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="refuse weights with NaN or infinity when the model is loaded; it takes a second per few gigabytes "
        "(default: yes)",
    )
    if not mesh:
        return
    add(
        "--mesh",
        type=mesh_sizes,
        metavar="AXIS=N,...",
        help="shard the model over this mesh of devices, such as fsdp=4 or data=2,tensor=2 (default: all devices; the "
        "model is replicated if it fits, else split over as few of them as it needs)",
    )


def add_dtype(parser: Any) -> None:
    """Adds `--dtype` of the parameters."""
    parser.add_argument(
        "--dtype",
        default="",
        choices=("float32", "bfloat16"),
        help="dtype of the parameters (default: as stored)",
    )


def load_model(options: argparse.Namespace, **more: Any) -> Tuna:
    """The model that the flags of `add_model` name; `more` are further arguments of `Tuna.load`."""
    import jax

    from tuna_jax.inference import loading
    from tuna_jax.inference.pipeline import Tuna
    from tuna_jax.training import staging
    from tuna_jax.utils import compile_cache

    compile_cache.enable()
    mesh = make_mesh(getattr(options, "mesh", None))
    sharded = hasattr(options, "mesh") and jax.device_count() > 1 and not more.get("programs")
    with staging.staged(options.model) as path:
        if mesh is None and sharded and Path(path).exists():
            mesh, more["dtype"] = loading.chosen_layout(path, more.get("dtype", ""))
        return Tuna.load(
            path,
            vae=options.vae,
            tokenizer=options.tokenizer,
            mesh=mesh,
            check_weights=options.check_weights,
            adapter=options.adapter,
            **more,
        )


@contextlib.contextmanager
def in_buckets(options: argparse.Namespace, *names: str) -> Iterator[None]:
    """While it lasts, options that are addresses (`gs://BUCKET/FOLDER`) are local folders that mirror them.

    Args:
      options: parsed flags.
      names: of the options; their values are paths, tuples or lists of paths, or empty.
    """
    from tuna_jax.training import staging

    given = {name: getattr(options, name) for name in names}
    with contextlib.ExitStack() as stack:
        local = lambda path: stack.enter_context(staging.staged(path))
        for name, value in given.items():
            if value:
                several = isinstance(value, (list, tuple))
                setattr(options, name, type(value)(map(local, value)) if several else local(value))
        try:
            yield
        finally:
            vars(options).update(given)


def make_mesh(sizes: dict[str, int] | None) -> Mesh | None:
    """The mesh of `--mesh` over all devices; None without the flag.

    Raises:
      ValueError: the sizes do not fit the devices.
    """
    if sizes is None:
        return None
    from tuna_jax.parallel import mesh

    return mesh.make_mesh(mesh.settings_of(sizes))


def mesh_sizes(text: str) -> dict[str, int]:
    """'fsdp=4,tensor=2' -> sizes by axis; axes that are not named have size 1."""
    axes = ("slices", "data", "fsdp", "context", "tensor")
    sizes: dict[str, int] = dict.fromkeys(axes, 1)
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in axes or not size.isdecimal() or int(size) < 1:
            raise argparse.ArgumentTypeError(
                f"{part!r} is not AXIS=N with an axis of {', '.join(axes)} and a size of at least 1"
            )
        sizes[axis] = int(size)
    return sizes


def add_sampling(parser: Any, names: Sequence[str] = SAMPLING) -> None:
    """Adds the flags of SAMPLING that `names` lists."""
    flags: dict[str, dict[str, Any]] = {
        "guidance": {
            "type": parsing.finite,
            "metavar": "SCALE",
            "help": "guidance scale; 1 samples without guidance (default: the model's own)",
        },
        "guidance_interval": {
            "type": parsing.interval,
            "metavar": "LOW,HIGH",
            "help": "apply guidance only at times within it, where 0 is noise and 1 is clean; faster (default 0,1)",
        },
        "steps": {
            "type": parsing.positive_int,
            "metavar": "N",
            "help": "solver steps (default: the model's own); the older --points=N means --steps=N-1",
        },
        "shift": {
            "type": parsing.positive,
            "help": "shift of the time grid toward noise (default: the model's own)",
        },
        "solver": {
            "choices": ("euler", "heun"),
            "help": "ODE solver (default: the model's own)",
        },
    }
    for name in names:
        parser.add_argument(f"--{name}", **flags[name])


def sampling_options(options: argparse.Namespace) -> dict[str, Any]:
    """Those of SAMPLING that were given, by name, checked before a model is loaded.

    Raises:
      ValueError: a value that means nothing, named.
    """
    from tuna_jax.inference import option_checks

    given = {name: getattr(options, name, None) for name in SAMPLING}
    return option_checks.check(given, option_checks.SAMPLING)
