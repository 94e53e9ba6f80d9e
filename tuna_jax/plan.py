"""Compiles an experiment's programs for a TPU slice that is not there: do they fit, and how fast could they be at most?

The real training step of every stream, the sampler and the VAE's decoder go through the TPU compiler (pip install
libtpu), which runs on any x86 machine with Linux. A TPU is not needed, nor data, nor weights.

Examples:

    # Every program of a stage on 16 chips of v5e:
    python -m tuna_jax.plan --config=experiments/tuna_1p5b_stage1.py --topology=v5e:4x4

    # One stream's step, with two rows a device and another mesh; the numbers to a file:
    python -m tuna_jax.plan --config=experiments/tuna_7b_stage2.py --topology=v5p:4x4x4 --stream=edit \\
        --rows_a_device=2 --config.mesh.fsdp=32 --config.mesh.tensor=2 --json=plans/7b_stage2.json

    # Two slices, which are joined by the data center's network:
    python -m tuna_jax.plan --config=experiments/tuna_7b_stage2.py --topology=v5e:8x8 --slices=2

A topology is KIND:AxB or KIND:AxBxC with the kinds v5e, v5p, v6e and tpu7x. The batch is the experiment's
(`rows` of each stream, over all devices), unless --rows_a_device says otherwise. Of a stream, the largest of its
batches is planned. A large step compiles for some minutes; results are printed and written one by one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from tuna_jax.experiment_flags import parse_flags
from tuna_jax.planning import topology

topology.prepare_environment()  # Before anything imports JAX.

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Experiment file, such as experiments/tuna_1p5b_stage1.py; --config.KEY=VALUE overrides a key.",
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
_JSON = flags.DEFINE_string("json", None, "File that the numbers are written to.")


def main(arguments: Sequence[str]) -> None:
    """Reads the flags and plans."""
    if len(arguments) > 1:
        raise app.UsageError(
            f"unexpected argument {arguments[1]!r}; settings are given as --config.KEY=VALUE"
        )
    if _CONFIG.value is None or _TOPOLOGY.value is None:
        raise app.UsageError(
            "give --config=EXPERIMENT and --topology=KIND:AxB; --help shows examples"
        )
    if logging.get_verbosity() == logging.INFO:
        logging.set_verbosity(logging.WARNING)
    import jax

    # Programs for a topology cannot be read back from the cache; they would only fill it.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        _plan(Path(flags.FLAGS["config"].config_filename).stem)
    except (ValueError, ModuleNotFoundError) as error:
        logging.debug("where it was raised:", exc_info=True)
        sys.exit(f"error: {error}")


def _plan(name: str) -> None:
    from tuna_jax.planning import experiment, measure, programs, report
    from tuna_jax.planning.chips import chip_of

    read = experiment.read(name, _CONFIG.value.to_dict())
    devices = topology.devices(_TOPOLOGY.value, _SLICES.value)
    mesh = programs.mesh_of(read, devices, _SLICES.value)
    chip = chip_of(_TOPOLOGY.value)
    target = measure.Target(topology=_TOPOLOGY.value, slices=_SLICES.value, chip=chip, mesh=mesh)
    rows = _ROWS.value and _ROWS.value * len(devices)
    results: list[dict[str, Any]] = []
    for planned in programs.all_of(read, mesh, rows, _STREAM.value, _PROGRAM.value):
        results.append(measure.measure(read, planned, target, _say))
        _say(report.verdict(results[-1]))
        if _JSON.value:
            path = Path(_JSON.value)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{report.heading(results[0])}\n\n{report.table(results)}\n")
    if cost := report.stage_cost(results):
        print(f"{cost}\n")
    print(report.LEGEND)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
