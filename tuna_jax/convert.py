"""Weights to and from PyTorch, and the proof that both sides compute the same.

Examples:

    # Is this TUNA? Runs every case of a golden set (what the released PyTorch code computed)
    # and prints a table; exit status 1 on any failure:
    python -m tuna_jax.convert verify tests/goldens/public

    # Has a preset exactly the parameters of the full-size model? Nothing is allocated:
    python -m tuna_jax.convert verify --manifest tests/goldens/manifests/tuna_2b.json
    python -m tuna_jax.convert verify --manifest FILE --preset tuna_7b
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

# The released code names the 1.5B model after its total size.
_PRESET_OF_MANIFEST = {"tuna_2b": "tuna_1p5b", "tuna_7b": "tuna_7b"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tuna_jax.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    verify = commands.add_parser(
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
    if (chosen.folder is None) == (chosen.manifest is None):
        verify.error("give either a golden set's folder DIR or --manifest FILE")
    # A parity check belongs on the CPU, in float32, whatever else the machine has.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Many small programs, each run once: compiling fast matters more than running fast.
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
    try:
        if chosen.manifest is not None:
            return _verify_manifest(chosen.manifest, chosen.preset)
        return _verify_goldens(chosen.folder, chosen.failures)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _verify_manifest(manifest: str, name: str | None) -> int:
    from pathlib import Path

    from tuna_jax.config import preset
    from tuna_jax.conversion import golden

    stem = Path(manifest).stem
    name = name or _PRESET_OF_MANIFEST.get(stem)
    if name is None:
        raise ValueError(f"which preset is {manifest}? Give --preset")
    count = golden.check_manifest(preset(name), manifest)
    print(f"{name}: all {count} keys and shapes are exactly those of {manifest}")
    return 0


def _verify_goldens(folder: str, failures_only: bool) -> int:
    from tuna_jax.conversion import golden

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


if __name__ == "__main__":
    sys.exit(main())
