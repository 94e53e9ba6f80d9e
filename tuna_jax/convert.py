"""Weights to and from PyTorch, and the proof that both sides compute the same.

Examples:

    # A PyTorch checkpoint of TUNA (one file, shards with an index, or .pt) becomes ours:
    python -m tuna_jax.convert from_torch tuna_2b/ model/ --preset=tuna_1p5b

    # The VAE may lie apart; a model that no preset describes brings its config:
    python -m tuna_jax.convert from_torch model.safetensors vae.safetensors OUT.safetensors --config=state_dict.json

    # A fresh TUNA of its parents, as the paper starts training:
    python -m tuna_jax.convert from_torch Qwen2.5-1.5B-Instruct/ siglip2-so400m-patch16-384/ Wan2.2_VAE.pth \\
        fresh/ --preset=tuna_1p5b --positions=interpolate

    # Back again, to the bit, as the one file that the released PyTorch code's own loader reads:
    python -m tuna_jax.convert to_torch model/ tuna_2b_again.safetensors

    # Or as shards with an index, as Hugging Face's tools like them; or a part alone, for transformers and diffusers:
    python -m tuna_jax.convert to_torch model/ tuna_2b_again/ --shard_gb=5
    python -m tuna_jax.convert to_torch model/ qwen/ --part=language

    # A TUNA with a language transformer that can talk, small enough for a laptop (pip install gguf):
    python -m tuna_jax.convert from_torch SmolLM2-135M-Instruct.Q4_1.gguf smol/ --preset=tuna_smol

    # A run of ours for PyTorch, from its newest checkpoint:
    python -m tuna_jax.convert to_torch runs/demo/ demo.safetensors

    # What is this file? Headers alone are read:
    python -m tuna_jax.convert inspect model.safetensors

    # Is this TUNA? Runs every case of a golden set (what the released PyTorch code computed)
    # and prints a table; exit status 1 on any failure:
    python -m tuna_jax.convert verify tests/goldens/public

    # Has a preset exactly the parameters of the full-size model? Nothing is allocated:
    python -m tuna_jax.convert verify --manifest tests/goldens/manifests/tuna_2b.json
    python -m tuna_jax.convert verify --manifest FILE --preset tuna_7b
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import absl.logging

if TYPE_CHECKING:
    from tuna_jax.config import TunaConfig

# The released code names the 1.5B model after its total size.
_PRESET_OF_MANIFEST = {"tuna_2b": "tuna_1p5b", "tuna_7b": "tuna_7b"}
# --part -> the parent's layout.
_PARTS = {
    "language": "qwen",
    "representation": "siglip",
    "vae": "wan",
    "vae_diffusers": "diffusers",
}
_OUTPUT = "a .safetensors file, or a folder for shards with an index; it must not exist yet"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tuna_jax.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = functools.partial(commands.add_parser, formatter_class=argparse.HelpFormatter)

    inward = add(
        "from_torch",
        help="a PyTorch checkpoint becomes ours",
        description="Reads an official TUNA state dict tensor by tensor and writes it under our names, layers "
        "stacked, with its config inside. Given its parents instead (a Qwen2.5 or llama-style language model, a "
        "SigLIP, a Wan 2.2 VAE), puts a fresh TUNA together. Sources are left as they are.",
    )
    inward.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help=".safetensors, .pt, .pth, .bin, .gguf, an index, or a folder: a TUNA, and its VAE if that lies apart; or "
        "its parents",
    )
    _add_output(inward)
    inward.add_argument(
        "--format",
        choices=("safetensors", "orbax"),
        default="safetensors",
        help="orbax: a checkpoint sharded over the devices at hand, in OUT/00000000; all of it is in memory at once",
    )
    _add_config(inward, required=True)

    inward.add_argument(
        "--positions",
        choices=("fresh", "interpolate"),
        default="fresh",
        help="of a SigLIP parent with another grid: new, or interpolated to the model's (default fresh)",
    )
    inward.add_argument("--seed", type=int, default=0, help="of what is new in a fresh TUNA")

    outward = add(
        "to_torch",
        help="ours becomes a PyTorch checkpoint",
        description="Writes an official TUNA state dict that the released PyTorch code loads: its own loader reads one "
        ".safetensors file; its `load_state_dict` takes the shards of a folder, merged, as well.",
    )
    outward.add_argument(
        "source",
        metavar="SOURCE",
        help="what from_torch wrote, or a training run's workdir or checkpoint (its averaged parameters)",
    )
    _add_output(outward)
    outward.add_argument(
        "--part",
        choices=tuple(_PARTS),
        help="only this part, as its parent has it: language (Hugging Face's Qwen2), representation (SigLIP), vae "
        "(Wan2.2_VAE.pth's names), vae_diffusers (AutoencoderKLWan). A folder as OUT gets a config.json too",
    )

    look = add(
        "inspect",
        help="what a checkpoint is, without loading it",
        description="Prints layout, components, sizes and dtypes, and which tensors are missing or foreign. Exit "
        "status 1 if any is.",
    )
    look.add_argument("source", metavar="PATH", help="any file or folder with weights")
    _add_config(look, required=False)

    verify = add(
        "verify",
        help="compare with a golden set, or a preset with a manifest",
        description="Compares this code with what the released PyTorch code computed.",
    )
    verify.add_argument("folder", nargs="?", metavar="DIR", help="a golden set")
    verify.add_argument(
        "--manifest", metavar="FILE", help="full-size keys and shapes to hold a preset against"
    )
    verify.add_argument(
        "--preset", help="preset for --manifest; by default the one that the manifest names"
    )
    verify.add_argument("--failures", action="store_true", help="print only what did not pass")

    chosen = parser.parse_args(arguments)
    if chosen.command == "verify" and (chosen.folder is None) == (chosen.manifest is None):
        verify.error("give either a golden set's folder DIR or --manifest FILE")
    # Files and a parity check belong on the CPU, in float32, whatever else the machine has.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Many small programs, each run once: compiling fast matters more than running fast.
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
    # Orbax warns of files that a checkpoint of its own need not have.
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        return _COMMANDS[chosen.command](chosen)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("output", metavar="OUT", help=_OUTPUT)
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="",
        help="cast to it; without it every tensor keeps its own, to the bit",
    )
    command.add_argument(
        "--shard_gb",
        type=float,
        default=5.0,
        metavar="GB",
        help="largest shard, where OUT is a folder (default 5)",
    )


def _add_config(command: argparse.ArgumentParser, required: bool) -> None:
    which = command.add_mutually_exclusive_group(required=required)
    which.add_argument(
        "--preset", help="the model's size: tiny, emoji, tuna_smol, tuna_1p5b or tuna_7b"
    )
    which.add_argument(
        "--config",
        metavar="FILE",
        help="JSON: a golden set's state_dict.json, or overrides as an experiment's config.model",
    )


def _config(chosen: argparse.Namespace) -> TunaConfig | None:
    from tuna_jax.config import preset
    from tuna_jax.conversion import detect_format

    if chosen.preset:
        return preset(chosen.preset)
    return detect_format.read_config(chosen.config) if chosen.config else None


def _from_torch(chosen: argparse.Namespace) -> int:
    from tuna_jax.conversion import (
        checkpoint_source,
        convert_checkpoint,
        detect_format,
        pretrained_backbones,
    )
    from tuna_jax.conversion.safetensors_writer import Writer

    config = _config(chosen)
    assert config is not None

    def sink(specs: convert_checkpoint.Specs) -> checkpoint_source.OrbaxWriter | Writer:
        if chosen.format == "orbax":
            return checkpoint_source.OrbaxWriter(chosen.output, config, specs)
        shard_bytes = int(chosen.shard_gb * 1e9)
        return convert_checkpoint.parameters_writer(chosen.output, config, shard_bytes=shard_bytes)(
            specs
        )

    state = detect_format.open_official(chosen.source)
    if not isinstance(state, list):
        count = convert_checkpoint.to_ours(config, state, sink, dtype=chosen.dtype, progress=True)
        print(f"{chosen.output}: {count} tensors of {', '.join(chosen.source)}")
        return 0
    notes = pretrained_backbones.to_ours(
        config,
        state,
        sink,
        positions=chosen.positions,
        seed=chosen.seed,
        dtype=chosen.dtype,
        progress=True,
    )
    print(f"{chosen.output}: a fresh TUNA of {', '.join(chosen.source)}")
    for what, names in notes.items():
        print(f"{what}:" + "".join(f"\n  {name}" for name in names or ["nothing"]))
    return 0


def _to_torch(chosen: argparse.Namespace) -> int:
    from tuna_jax.conversion import checkpoint_source, convert_checkpoint, pretrained_backbones
    from tuna_jax.conversion.safetensors_writer import Writer

    config, params = checkpoint_source.open_parameters(chosen.source)

    extra = {}
    if chosen.part and pretrained_backbones.backbone_config(config, _PARTS[chosen.part]):
        part_config = pretrained_backbones.backbone_config(config, _PARTS[chosen.part])
        extra["config.json"] = json.dumps(part_config, indent=2)

    def sink(specs: convert_checkpoint.Specs) -> Writer:
        return Writer(
            chosen.output,
            specs,
            metadata={"format": "pt"},  # PyTorch's readers ask for this remark.
            shard_bytes=int(chosen.shard_gb * 1e9),
            name="diffusion_pytorch_model" if chosen.part == "vae_diffusers" else "model",
            extra=extra,
        )

    options: Any = {"dtype": chosen.dtype, "progress": True}
    if chosen.part:
        count = pretrained_backbones.to_backbone(
            config, params, _PARTS[chosen.part], sink, **options
        )
    else:
        count = convert_checkpoint.to_torch(config, params, sink, **options)
    print(f"{chosen.output}: {count} tensors of {chosen.source}")
    return 0


def _inspect(chosen: argparse.Namespace) -> int:
    from tuna_jax.conversion import checkpoint_source, detect_format

    carried, state = checkpoint_source.open_any(chosen.source)
    against = f"preset {chosen.preset}" if chosen.preset else chosen.config or "its own config"
    found = detect_format.summarize(state, _config(chosen) or carried, against)
    kind = (
        detect_format.LAYOUTS[found.layout][0] if found.layout else "weights of an unknown layout"
    )
    print(f"{chosen.source}: {kind}, in {len(found.files)} file{'s' * (len(found.files) != 1)}\n")
    lines: list[tuple[Any, ...]] = [("component", "tensors", "parameters", "size", "dtypes")]
    for part in found.components:
        size = f"{part.nbytes / 1e6:,.1f} MB"
        lines.append(
            (part.name, part.tensors, f"{part.parameters:,}", size, ", ".join(part.dtypes))
        )
    total = sum(part.parameters for part in found.components)
    size = f"{sum(part.nbytes for part in found.components) / 1e6:,.1f} MB"
    lines.append(("all", sum(part.tensors for part in found.components), f"{total:,}", size, ""))
    for name, tensors, parameters, size, dtypes in lines:
        print(f"{name:24}{tensors:>9}{parameters:>18}{size:>16}  {dtypes}".rstrip())
    if not found.compared_with:
        return 0 if found.layout else 1
    if found.differences:
        print(f"\nHeld against {found.compared_with}: {found.differences}")
        return 1
    print(f"\nHeld against {found.compared_with}: nothing is missing, nothing is foreign.")
    return 0


def _verify(chosen: argparse.Namespace) -> int:
    if chosen.manifest is not None:
        return _verify_manifest(chosen.manifest, chosen.preset)
    return _verify_goldens(chosen.folder, chosen.failures)


def _verify_manifest(manifest: str, name: str | None) -> int:
    from pathlib import Path

    from tuna_jax.config import preset
    from tuna_jax.parity import verify as golden

    if not Path(manifest).is_file():
        raise FileNotFoundError(f"no manifest at {manifest}")
    stem = Path(manifest).stem
    name = name or _PRESET_OF_MANIFEST.get(stem)
    if name is None:
        raise ValueError(f"which preset is {manifest}? Give --preset")
    count = golden.check_manifest(preset(name), manifest)
    print(f"{name}: all {count} keys and shapes are exactly those of {manifest}")
    return 0


def _verify_goldens(folder: str, failures_only: bool) -> int:
    from tuna_jax.parity import verify as golden

    def show(result: golden.Result) -> None:
        if failures_only and result.status == "pass":
            return
        print(
            f"{result.case:18} {result.tensor:60} {result.max_abs:10.2e} {result.relative:10.2e} "
            f"{result.status:8} {result.note}",
            flush=True,
        )

    print(f"{'case':18} {'tensor':60} {'max abs':>10} {'rel L2':>10} status")
    results = golden.verify(folder, show)
    counts = {
        status: sum(r.status == status for r in results) for status in ("pass", "FAIL", "excluded")
    }
    cases = len({result.case for result in results})
    print(
        f"\n{cases} cases: {counts['pass']} passed, {counts['FAIL']} failed, "
        f"{counts['excluded']} excluded as faults of the released code"
    )
    return 1 if counts["FAIL"] else 0


_COMMANDS = {
    "from_torch": _from_torch,
    "to_torch": _to_torch,
    "inspect": _inspect,
    "verify": _verify,
}


if __name__ == "__main__":
    sys.exit(main())
