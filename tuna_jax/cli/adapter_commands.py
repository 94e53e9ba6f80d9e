"""The commands of `tuna-jax convert` about adapters: merging them into their model, and PEFT's files."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuna_jax.cli import parsing

_ADAPTER = (
    "workdir of a run with config.lora, its adapter.safetensors or one of its checkpoints, or what "
    "from_peft wrote"
)
_OUTPUT = "a .safetensors file, or a folder for shards with an index; it must not exist yet"


def add(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the commands to the parser; `COMMANDS` has what they do."""
    merge = add_command(
        "merge_adapter",
        help="write a model with an adapter merged into it",
        description="Adds the products of an adapter's matrices to the kernels of its model, in float32.",
    )
    merge.add_argument("source", type=parsing.model_path, metavar="MODEL", help="the model")
    merge.add_argument("adapter", metavar="ADAPTER", help=_ADAPTER)
    merge.add_argument("output", metavar="OUT", help=_OUTPUT)
    merge.add_argument(
        "--difference",
        metavar="FILE",
        help="also write what unmerge_adapter needs; it is as large as the kernels that the adapter changes",
    )
    merge.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="",
        help="dtype of the kernels that the adapter changes (default: the model's)",
    )

    unmerge = add_command(
        "unmerge_adapter",
        help="write the model from before merge_adapter, to the bit",
        description="Restores the bits of every parameter from those that `merge_adapter --difference=FILE` stored.",
    )
    unmerge.add_argument("source", metavar="MODEL", help="what merge_adapter wrote")
    unmerge.add_argument("difference", metavar="FILE", help="what merge_adapter --difference wrote")
    unmerge.add_argument("output", metavar="OUT", help=_OUTPUT)

    outward = add_command(
        "to_peft",
        help="write an adapter in the files of PEFT",
        description="Writes adapter_config.json and adapter_model.safetensors, which PEFT loads onto the released "
        "PyTorch code or, with --part=language, onto a Qwen2.5 of Hugging Face.",
    )
    outward.add_argument("source", metavar="ADAPTER", help=_ADAPTER)
    outward.add_argument("output", metavar="OUT", help="folder; it must not exist yet")
    outward.add_argument(
        "--part",
        choices=("language",),
        default="",
        help="only the layers of the language transformer, in Hugging Face's names of Qwen2.5",
    )

    inward = add_command(
        "from_peft",
        help="read an adapter of PEFT",
        description="Reads PEFT's adapter of a Qwen2.5, or of the released PyTorch code, and writes it as an adapter "
        "of a model of ours, whose language transformer is that Qwen2.5.",
    )
    inward.add_argument(
        "source",
        metavar="PEFT",
        help="folder with adapter_config.json and adapter_model.safetensors",
    )
    inward.add_argument("output", metavar="OUT", help="folder; it must not exist yet")
    inward.add_argument(
        "--model",
        required=True,
        type=parsing.model_path,
        metavar="PATH",
        help="the model that the adapter is for",
    )


def _merge(options: argparse.Namespace) -> int:
    from tuna_jax.conversion import merge_adapter

    count = merge_adapter.merge(
        options.source,
        options.adapter,
        options.output,
        difference=options.difference,
        dtype=options.dtype,
    )
    print(f"{options.output}: {options.source} with {options.adapter}, {count} parameters changed")
    return 0


def _unmerge(options: argparse.Namespace) -> int:
    from tuna_jax.conversion import merge_adapter

    count = merge_adapter.unmerge(options.source, options.difference, options.output)
    print(f"{options.output}: {options.source} without the adapter, {count} parameters restored")
    return 0


def _to_peft(options: argparse.Namespace) -> int:
    from tuna_jax.conversion import checkpoint_source, peft

    left_out = peft.write(
        checkpoint_source.open_adapter(options.source), options.output, part=options.part
    )
    print(f"{options.output}: {options.source} in the files of PEFT")
    if left_out:
        print("left out, not in this part:" + "".join(f"\n  {name}" for name in left_out))
    return 0


def _from_peft(options: argparse.Namespace) -> int:
    from tuna_jax.adapters.settings import AdapterRecord
    from tuna_jax.conversion import adapter_source, checkpoint_source, peft
    from tuna_jax.inference import run_record
    from tuna_jax.training.weights_file import ADAPTER_FILE, RECORD_KEY
    from tuna_jax.utils import safetensors_files

    output = Path(options.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(
            f"{output} already exists and is not overwritten; use another output, or move it away"
        )
    config, state = checkpoint_source.open_parameters(options.model)
    imported = peft.read(options.source, config)
    record = AdapterRecord(
        rank=imported.rank,
        alpha=imported.alpha,
        base=str(options.model),
        digest=adapter_source.digest_of(state),
    )
    of_model = run_record.read(Path(options.model), state)
    run: dict[str, Any] = dataclasses.replace(of_model, adapter=record).to_json()
    settings = {"kind": run["kind"], "model": config.to_dict(), RECORD_KEY: run}
    safetensors_files.write(
        output / ADAPTER_FILE, imported.arrays, {"settings": json.dumps(settings), "step": "0"}
    )
    print(
        f"{output}: {options.source} (rank {imported.rank}, trained on {imported.base or 'an unnamed model'}) as an "
        f"adapter of {options.model}; {len(imported.arrays)} arrays"
    )
    return 0


COMMANDS = {
    "merge_adapter": _merge,
    "unmerge_adapter": _unmerge,
    "to_peft": _to_peft,
    "from_peft": _from_peft,
}
