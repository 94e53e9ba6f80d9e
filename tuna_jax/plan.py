"""Compiles an experiment's programs for a TPU slice that is not there: do they fit, and how fast could they be at most?

The real training step of every stream, the sampler and the VAE's decoder go through the TPU compiler, which runs on any
x86 machine with Linux: pip install libtpu. A TPU is not needed, nor data, nor weights.

Examples:

    # Every program of a stage on 64 chips of v5e:
    python -m tuna_jax.plan --config=experiments/tuna/tuna_1p5b_stage1.py --topology=v5e:8x8

    # One stream's step, with two rows a device and another mesh; the numbers to a file:
    python -m tuna_jax.plan --config=experiments/tuna/tuna_7b_stage2.py --topology=v5p:4x4x4 --stream=edit \\
        --rows_a_device=2 --config.mesh.fsdp=32 --config.mesh.tensor=2 --json=plans/7b_stage2.json

    # Which batch, mesh and rematerialisation are best for a stream: formulas first, then the compiler on the best few:
    python -m tuna_jax.plan --config=experiments/tuna/tuna_7b_stage2.py --topology=v5p:4x4x4 --stream=edit --search

    # Where the compiler thinks that the time of a step goes, operation by operation:
    python -m tuna_jax.plan --config=experiments/tuna/tuna_1p5b_stage2.py --topology=v5e:8x8 --stream=draw --profile

    # Two slices, which are joined by the data center's network:
    python -m tuna_jax.plan --config=experiments/tuna/tuna_7b_stage2.py --topology=v5e:8x8 --slices=2

    # Memory of attention by backend and length; then the page of all files that --json wrote:
    python -m tuna_jax.plan --attention --topology=v5e:2x2 --json=docs/plans/attention.json
    python -m tuna_jax.plan --collect=docs/plans --page=docs/scaling.md

A topology is KIND:AxB or KIND:AxBxC with the kinds v5e, v5p, v6e and tpu7x. The batch is the experiment's
(`rows` of each stream, over all devices), unless --rows_a_device says otherwise. Of a stream, the largest of its
batches is planned. A large step compiles for some minutes; results are told and written one by one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from tuna_jax.cli.config_flags import parse_flags
from tuna_jax.planning import topology

topology.prepare_environment()  # Before anything imports JAX.

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Experiment file, such as experiments/tuna/tuna_1p5b_stage1.py; --config.KEY=VALUE overrides a key.",
)
_TOPOLOGY = flags.DEFINE_string("topology", None, "The slice, such as v5e:4x4 or v5p:4x4x4.")
_SLICES = flags.DEFINE_integer("slices", 1, "How many such slices.", lower_bound=1)
_STREAM = flags.DEFINE_multi_string("stream", [], "Only this stream's step; may be repeated.")
_PROGRAM = flags.DEFINE_multi_enum(
    "program", [], ["train", "sample", "decode"], "Only this kind of program; may be repeated."
)
_ROWS = flags.DEFINE_integer(
    "rows_a_device", None, "Rows of a batch on each device.", lower_bound=1
)
_SEARCH = flags.DEFINE_boolean("search", False, "Look for the best batch, mesh and remat.")
_TRIES = flags.DEFINE_integer(
    "tries", 3, "Candidates that --search compiles at most.", lower_bound=1
)
_PROFILE = flags.DEFINE_boolean(
    "profile", False, "Also tell where the compiler thinks that time goes, operation by operation."
)
_ATTENTION = flags.DEFINE_boolean("attention", False, "Measure attention's memory by backend.")
_COLLECT = flags.DEFINE_string("collect", None, "Folder of files of --json to make --page of.")
_PAGE = flags.DEFINE_string("page", None, "The page that --collect writes.")
_JSON = flags.DEFINE_string("json", None, "File that the numbers are written to.")


def main(arguments: Sequence[str]) -> None:
    """Reads the flags and plans."""
    if len(arguments) > 1:
        raise app.UsageError(
            f"unexpected argument {arguments[1]!r}; settings are given as --config.KEY=VALUE"
        )
    if (_COLLECT.value is None) != (_PAGE.value is None):
        raise app.UsageError("--collect=FOLDER and --page=FILE go together")
    wanted = [_TOPOLOGY.value] if _ATTENTION.value else [_TOPOLOGY.value, _CONFIG.value]
    if _COLLECT.value is None and None in wanted:
        raise app.UsageError(
            "give --config=EXPERIMENT and --topology=KIND:AxB; --help shows examples"
        )
    if _PROFILE.value and (_SEARCH.value or _ATTENTION.value or _COLLECT.value):
        raise app.UsageError(
            "--profile goes with programs alone, not with --search, --attention or --collect"
        )
    if logging.get_verbosity() == logging.INFO:
        logging.set_verbosity(logging.WARNING)
    import jax

    # Programs for a topology cannot be read back from the cache; they would only fill it.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        if _COLLECT.value:
            _write_page(Path(_COLLECT.value), Path(str(_PAGE.value)))
        elif _ATTENTION.value:
            _measure_attention()
        else:
            _plan(Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem)
    except (ValueError, ModuleNotFoundError) as error:
        logging.debug("where it was raised:", exc_info=True)
        sys.exit(f"error: {error}")


def _plan(name: str) -> None:
    from tuna_jax.planning import planner, report, stage

    read = stage.read(name, _CONFIG.value.to_dict())
    name = str(_TOPOLOGY.value)
    devices = topology.devices(name, _SLICES.value)
    where = planner.TargetDevices(topology=name, slices=_SLICES.value, devices=devices)
    if _SEARCH.value:
        (stream,) = _STREAM.value if len(_STREAM.value) == 1 else [None]
        found = planner.run_search(read, where, stream, _TRIES.value, _say)
        results, notes = found.results, found.notes
        _write({"kind": "plan", "results": results, "search": notes})
    else:
        results, notes = [], []
        rows = _ROWS.value and _ROWS.value * len(devices)
        wanted = _STREAM.value, _PROGRAM.value, _say, _PROFILE.value
        for result in planner.all_of(read, where, rows, *wanted):
            results.append(result)
            _say(report.verdict(result))
            _write({"kind": "plan", "results": results})
    for result in results[:1] if not _SEARCH.value else results:
        print(f"\n{report.heading(result)}")
    print(f"\n{report.table(results)}\n")
    for line in filter(None, [*notes, report.stage_cost(results)]):
        print(f"{line}\n")
    print(report.LEGEND)
    for result in results:
        if "profile" in result:
            print(f"\n{report.profile(result)}")


def _measure_attention() -> None:
    from tuna_jax.planning import attention_memory

    rows = attention_memory.measure(topology.devices(str(_TOPOLOGY.value))[0], log=_say)
    _write({"kind": "attention", "topology": _TOPOLOGY.value, "results": rows})
    print(attention_memory.table(rows))


def _write_page(folder: Path, page: Path) -> None:
    from tuna_jax.planning.markdown_page import collect

    page.write_text(collect(folder, page))
    print(page)


def _write(held: dict[str, Any]) -> None:
    if _JSON.value:
        path = Path(_JSON.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"command": sys.argv[1:], **held}, indent=1) + "\n")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
