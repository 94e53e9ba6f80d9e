"""Converts weights to and from PyTorch, inspects files of weights, and verifies parity with the released code.

Examples:

    # A PyTorch checkpoint of TUNA (one file, shards with an index, or .pt) becomes ours:
    tuna-jax convert from_torch tuna_2b/ model/ --preset=tuna_1p5b

    # With the VAE in a separate file; a model that no preset describes brings its configuration:
    tuna-jax convert from_torch model.safetensors vae.safetensors OUT.safetensors --config=state_dict.json

    # A fresh TUNA from pre-trained backbones, as the paper starts training:
    tuna-jax convert from_torch Qwen2.5-1.5B-Instruct/ siglip2-so400m-patch16-384/ Wan2.2_VAE.pth \\
        fresh/ --preset=tuna_1p5b --positions=interpolate

    # Back to PyTorch, to the bit, as the one file that the released code's own loader reads:
    tuna-jax convert to_torch model/ tuna_2b_again.safetensors

    # Or as shards with an index, as Hugging Face's tools expect; or only one part, for transformers and diffusers:
    tuna-jax convert to_torch model/ tuna_2b_again/ --shard_gb=5
    tuna-jax convert to_torch model/ qwen/ --part=language

    # A TUNA with a small language model that runs on a laptop (pip install gguf):
    tuna-jax convert from_torch SmolLM2-135M-Instruct.Q4_1.gguf smol/ --preset=tuna_smol

    # A training run for PyTorch, from its newest checkpoint:
    tuna-jax convert to_torch runs/demo/ demo.safetensors

    # What is this file, and are its numbers finite? With --no-check_weights only headers are read:
    tuna-jax convert inspect model.safetensors

    # An adapter that `config.lora` trained, merged into its model; and taken out again, to the bit:
    tuna-jax convert merge_adapter model/ runs/lora merged/ --difference=difference.safetensors
    tuna-jax convert unmerge_adapter merged/ difference.safetensors model_again/

    # In the files of PEFT, for a Qwen2.5 of Hugging Face; and PEFT's adapter of a Qwen2.5 for a model of ours:
    tuna-jax convert to_peft runs/lora peft/ --part=language
    tuna-jax convert from_peft peft/ adapter/ --model=model/

    # Parity: runs every case of a golden set (arrays that the released PyTorch code computed) and prints a table; the
    # exit status is 1 if a case fails:
    tuna-jax convert verify tests/goldens/public

    # Does a preset have exactly the parameters of the full-size model? Nothing is allocated:
    tuna-jax convert verify --manifest tests/goldens/manifests/tuna_2b.json
    tuna-jax convert verify --manifest FILE --preset tuna_7b
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tuna_jax.cli import adapter_commands, parsing, shared_flags, weight_reports

if TYPE_CHECKING:
    pass

# --part -> the layout of its backbone; that of the representation encoder is its kind.
_PARTS = {
    "language": "qwen",
    "representation": "",
    "vae": "wan",
    "vae_diffusers": "diffusers",
}
_OUTPUT = "a .safetensors file, or a folder (also gs://BUCKET/FOLDER) for shards with an index; it must not exist yet"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = parsing.make_parser("convert", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = functools.partial(commands.add_parser, formatter_class=argparse.HelpFormatter)

    inward = add(
        "from_torch",
        help="convert a PyTorch checkpoint, or assemble a model from pre-trained backbones",
        description="Reads an official TUNA state dict tensor by tensor and writes it under our names, layers "
        "stacked, with its configuration. Given pre-trained backbones instead (a Qwen2.5 or llama-style language "
        "model, a SigLIP or DINOv3, a Wan VAE), assembles a fresh TUNA from them. The sources are not changed.",
    )
    inward.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help=".safetensors, .pt, .pth, .bin, .gguf, an index, or a folder: a TUNA, and its VAE if that is a separate "
        "file; or pre-trained backbones",
    )
    _add_output(inward)
    inward.add_argument(
        "--format",
        choices=("safetensors", "orbax"),
        default="safetensors",
        help="orbax: a checkpoint sharded over the available devices, in OUT/00000000; it is held in memory as a whole",
    )
    _add_config(inward, required=True)

    inward.add_argument(
        "--positions",
        choices=("fresh", "interpolate"),
        default="",
        help="position table of a SigLIP with another grid: freshly initialised, or interpolated to the model's grid "
        "(default: fresh for a model on latents, interpolate for one on pixels)",
    )
    inward.add_argument(
        "--missing_layers",
        choices=("refuse", "initialise"),
        default="refuse",
        help="whole layers that a TUNA checkpoint lacks, as the authors' foundation checkpoints do: list them and "
        "stop, or fill them with layers that change nothing until they are trained (default: refuse)",
    )
    inward.add_argument(
        "--seed",
        type=parsing.seed,
        default=0,
        help="seed of the parameters that no backbone has, and of filled layers (default 0)",
    )

    _add_check(inward)

    outward = add(
        "to_torch",
        help="write a PyTorch checkpoint",
        description="Writes an official TUNA state dict that the released PyTorch code loads: its own loader reads one "
        ".safetensors file; its `load_state_dict` takes the shards of a folder, merged, as well.",
    )
    outward.add_argument(
        "source",
        type=parsing.model_path,
        metavar="SOURCE",
        help="what from_torch wrote, or a training run's workdir or checkpoint (averaged parameters)",
    )
    _add_output(outward)
    outward.add_argument(
        "--part",
        choices=tuple(_PARTS),
        help="only this part, in its backbone's own layout: language (Hugging Face's Qwen2), representation (SigLIP or "
        "DINOv3), vae (Wan2.2_VAE.pth's names), vae_diffusers (AutoencoderKLWan). A folder as OUT gets a config.json",
    )

    _add_check(outward)

    look = add(
        "inspect",
        help="what a checkpoint is, without loading it",
        description="Prints layout, components, sizes and dtypes, and which tensors are missing, unknown, or have NaN "
        "or infinity. The exit status is 1 if there are any.",
    )
    look.add_argument(
        "source",
        type=parsing.model_path,
        metavar="PATH",
        help="any file or folder with weights, or `emoji`",
    )
    _add_config(look, required=False)
    _add_check(look)

    adapter_commands.add(add)

    verify = add(
        "verify",
        help="compare with a golden set, or a preset with a manifest",
        description="Compares this code with what the released PyTorch code computed.",
    )
    verify.add_argument("folder", nargs="?", metavar="DIR", help="a golden set")
    verify.add_argument(
        "--manifest",
        metavar="FILE",
        help="keys and shapes of a full-size model to compare a preset with",
    )
    verify.add_argument(
        "--preset", help="preset for --manifest (default: the one that the manifest's name implies)"
    )
    verify.add_argument("--failures", action="store_true", help="print only what did not pass")

    options = parser.parse_args(parsing.current_arguments("convert", arguments))
    if options.command == "verify" and (options.folder is None) == (options.manifest is None):
        verify.error("give either a golden set's folder DIR or --manifest FILE")
    # Files and parity checks belong on the CPU, in float32, whatever accelerators the machine has.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Many small programs, each run once: compiling fast matters more than running fast.
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )

    def work() -> int:
        import absl.logging

        # Orbax warns about files that a checkpoint of its own need not have.
        absl.logging.set_verbosity(absl.logging.ERROR)
        names = ("source", "output", "adapter", "difference", "model")
        paths = [name for name in names if hasattr(options, name)]
        with shared_flags.in_buckets(options, *paths):
            return _COMMANDS[options.command](options)

    return parsing.run(work, options.verbosity)


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("output", metavar="OUT", help=_OUTPUT)
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="",
        help="dtype to cast to (default: every tensor keeps its own, to the bit)",
    )
    command.add_argument(
        "--shard_gb",
        type=parsing.positive,
        default=5.0,
        metavar="GB",
        help="largest shard in gigabytes, if OUT is a folder (default 5)",
    )


def _add_check(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--check_weights",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="look for NaN and infinity in every tensor, one at a time (default: yes)",
    )


def _add_config(command: argparse.ArgumentParser, required: bool) -> None:
    which = command.add_mutually_exclusive_group(required=required)
    which.add_argument(
        "--preset",
        help="the model: tuna_1p5b, tuna_7b, tuna_r_7b, tuna_2_7b, ... (tuna_jax/config/presets.py)",
    )
    which.add_argument(
        "--config",
        metavar="FILE",
        help="JSON: a golden set's state_dict.json, or overrides as in an experiment's config.model",
    )


def _from_torch(options: argparse.Namespace) -> int:
    from tuna_jax.conversion import (
        checkpoint_source,
        convert_checkpoint,
        detect_format,
        missing_layers,
        pretrained_backbones,
    )
    from tuna_jax.conversion.safetensors_writer import Writer

    config = weight_reports.chosen_config(options)
    assert config is not None

    def sink(specs: convert_checkpoint.Specs) -> checkpoint_source.OrbaxWriter | Writer:
        if options.format == "orbax":
            return checkpoint_source.OrbaxWriter(options.output, config, specs)
        shard_bytes = int(options.shard_gb * 1e9)
        return convert_checkpoint.parameters_writer(
            options.output, config, shard_bytes=shard_bytes
        )(specs)

    state = detect_format.open_official(options.source)
    if not isinstance(state, list):
        absent = missing_layers.missing(config, state.entries)
        count = convert_checkpoint.to_ours(
            config,
            state,
            sink,
            dtype=options.dtype,
            progress=True,
            check_weights=options.check_weights,
            fill=options.missing_layers,
            seed=options.seed,
        )
        print(f"{options.output}: {count} tensors of {', '.join(options.source)}")
        if absent:
            print(
                f"initialised layers: {missing_layers.describe(absent)}; train them before use: "
                f"config.optimizer.trained={tuple(layer.trained for layer in absent)}"
            )
        for what, names in convert_checkpoint.left_out(config, state).items():
            print(f"{what}:" + "".join(f"\n  {name}" for name in names or ["none"]))
        return 0
    notes = pretrained_backbones.to_ours(
        config,
        state,
        sink,
        positions=options.positions,
        seed=options.seed,
        dtype=options.dtype,
        progress=True,
        check_weights=options.check_weights,
    )
    print(f"{options.output}: a fresh TUNA from {', '.join(options.source)}")
    for what, names in notes.items():
        print(f"{what}:" + "".join(f"\n  {name}" for name in names or ["none"]))
    return 0


def _to_torch(options: argparse.Namespace) -> int:
    from tuna_jax.conversion import checkpoint_source, convert_checkpoint, export_backbone
    from tuna_jax.conversion.safetensors_writer import Writer

    config, params = checkpoint_source.open_parameters(options.source)

    layout, extra = _PARTS.get(options.part, ""), {}
    if options.part == "representation":
        if not config.has_encoder:
            raise ValueError(
                f"{options.source} has no representation encoder (design {config.design!r}); choose another --part"
            )
        layout = config.representation.kind
    for name, write in (
        ("config.json", export_backbone.backbone_config),
        ("preprocessor_config.json", export_backbone.preprocessor_config),
    ):
        if layout and (values := write(config, layout)):
            extra[name] = json.dumps(values, indent=2)

    def sink(specs: convert_checkpoint.Specs) -> Writer:
        return Writer(
            options.output,
            specs,
            metadata={"format": "pt"},  # PyTorch's readers require this entry.
            shard_bytes=int(options.shard_gb * 1e9),
            name="diffusion_pytorch_model" if options.part == "vae_diffusers" else "model",
            extra=extra,
        )

    how: Any = {"dtype": options.dtype, "progress": True}
    how["check_weights"] = options.check_weights
    if options.part:
        count = export_backbone.to_backbone(config, params, layout, sink, **how)
    else:
        count = convert_checkpoint.to_torch(config, params, sink, **how)
    print(f"{options.output}: {count} tensors of {options.source}")
    return 0


_COMMANDS = {
    "from_torch": _from_torch,
    "to_torch": _to_torch,
    "inspect": weight_reports.inspect,
    "verify": weight_reports.verify,
    **adapter_commands.COMMANDS,
}


if __name__ == "__main__":
    sys.exit(main())
