"""What `tuna-jax convert inspect` and `verify` print."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuna_jax.config import TunaConfig

# The released code names the 1.5B model after its total size.
_PRESET_OF_MANIFEST = {
    "tuna_2b": "tuna_1p5b",
    "tuna_7b": "tuna_7b",
    "tuna_2r_pixel_7b": "tuna_r_7b",
    "tuna_2_pixel_7b": "tuna_2_7b",
}


def chosen_config(options: argparse.Namespace) -> TunaConfig | None:
    """The configuration that `--preset` or `--config` names; None without either."""
    from tuna_jax.config import preset
    from tuna_jax.conversion import detect_format

    if options.preset:
        return preset(options.preset)
    return detect_format.read_config(options.config) if options.config else None


def inspect(options: argparse.Namespace) -> int:
    """Prints layout, components, sizes and dtypes of a file of weights, and what is wrong with it; returns the exit
    status."""
    from tuna_jax.conversion import checkpoint_source, detect_format

    carried, state = checkpoint_source.open_any(options.source)
    against = (
        f"preset {options.preset}" if options.preset else options.config or "its own configuration"
    )
    summary = detect_format.summarize(state, chosen_config(options) or carried, against)
    kind = (
        detect_format.LAYOUTS[summary.layout][0]
        if summary.layout
        else "weights of an unknown layout"
    )
    print(
        f"{options.source}: {kind}, in {len(summary.files)} file{'s' * (len(summary.files) != 1)}"
    )
    if summary.layout == "tuna":
        print(f"model: {detect_format.family(state)}")
    print()
    lines: list[tuple[Any, ...]] = [("component", "tensors", "parameters", "size", "dtypes")]
    for part in summary.components:
        size = f"{part.nbytes / 1e6:,.1f} MB"
        lines.append(
            (part.name, part.tensors, f"{part.parameters:,}", size, ", ".join(part.dtypes))
        )
    total = sum(part.parameters for part in summary.components)
    size = f"{sum(part.nbytes for part in summary.components) / 1e6:,.1f} MB"
    lines.append(("all", sum(part.tensors for part in summary.components), f"{total:,}", size, ""))
    for name, tensors, parameters, size, dtypes in lines:
        print(f"{name:24}{tensors:>9}{parameters:>18}{size:>16}  {dtypes}".rstrip())
    bad = detect_format.not_finite(state) if options.check_weights else []
    if bad:
        from tuna_jax.utils import nonfinite_values

        print(f"\nNaN or infinity in {len(bad)} tensors: {nonfinite_values.describe(bad)}")
    if summary.layout in ("tuna", "tuna_jax") and options.check_weights and summary.config:
        from tuna_jax.conversion import missing_layers

        released = summary.layout == "tuna"
        absent = missing_layers.missing(summary.config, state.entries) if released else []
        if absent:
            print(f"\nWhole layers are missing: {missing_layers.describe(absent)}")
        for name, signs in missing_layers.untrained(summary.config, state).items():
            print(f"\n{name} looks untrained: {', '.join(signs)}")
    if not summary.compared_with:
        return 0 if summary.layout and not bad else 1
    if summary.differences:
        print(f"\nCompared with {summary.compared_with}: {summary.differences}")
        return 1
    print(f"\nCompared with {summary.compared_with}: no tensor is missing, none is unknown.")
    return 1 if bad else 0


def verify(options: argparse.Namespace) -> int:
    """Checks a golden set, or the keys and shapes of a manifest; returns the exit status."""
    if options.manifest is not None:
        return _verify_manifest(options.manifest, options.preset)
    return _verify_goldens(options.folder, options.failures)


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
