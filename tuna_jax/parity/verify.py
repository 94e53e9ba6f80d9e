"""Golden sets: what the released PyTorch code computed, and whether we compute the same.

A golden set is a folder of cases (`tensors.safetensors` + `meta.json`) beside a tiny state dict.
`verify` maps the state dict
through the one table, runs every case (`golden_cases.py`), and compares each tensor of role
`output`, and each `intermediate`
that ours has too. A case that it does not know, or an output that it does not compute, is a failure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tuna_jax.config import (
    TunaConfig,
)
from tuna_jax.conversion import weight_map
from tuna_jax.conversion.convert_checkpoint import parameter_shapes
from tuna_jax.parity.golden_set import Against, Case, GoldenError, _read_json, load

# Faults of the released code, by name, as the goldens' README lists them: not reproduced, not compared.
_NO_ROPE = (
    "the released code applies no RoPE in a batch without pictures, and nothing reads this output"
)
_UNUSED_SLOT = "in the released code an unused slot (-1, -1) rotates real tokens again"
_PADS = "image-pad tokens in a text-only batch"
EXCLUDED: dict[str, str] = {
    "components/quirk_q_rope": _UNUSED_SLOT,
    "components/quirk_k_rope": _UNUSED_SLOT,
    "components/block0_out_rope_none": _NO_ROPE,
    "text_only/v_pred_all": _NO_ROPE,
    "text_only/mix_loss_flow": _UNUSED_SLOT,
    "text_only/mix_v_pred_all": _UNUSED_SLOT,
    "text_only/ds_logits": _PADS,
    "text_only/ds_loss_ntp": _PADS,
    "text_only/ds_v_pred_all": _PADS,
    "full_mmu/loss_flow_official": "NaN without flow targets; ours is 0",
    "full_mmu/wrapper_total_loss_mmu": "NaN without flow targets; ours is the text loss",
    "vae_video/latents_11f": "11 frames silently lose two; ours is an error",
    "vae_video/log_var_11f": "11 frames silently lose two; ours is an error",
}

# Largest relative L2 error: single components, and everything that runs the whole model.
COMPONENT_TOLERANCE, MODEL_TOLERANCE = 1e-5, 1e-4
COMPONENTS = ("components", "siglip", "llm", "vae_image", "vae_video", "transport")


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
      case, tensor: what was compared.
      max_abs: largest absolute error.
      relative: relative L2 error.
      status: 'pass', 'FAIL' or 'excluded'.
      note: why it failed or is excluded.
    """

    case: str
    tensor: str
    max_abs: float
    relative: float
    status: str
    note: str = ""


def verify(
    folder: str | Path, report: Callable[[Result], None] = lambda result: None
) -> list[Result]:
    """Runs every case of a golden set; see the module's docstring for what fails.

    Args:
      folder: the golden set.
      report: called with every result as soon as its case is done.
    """
    from tuna_jax.parity import model_cases

    golden = load(folder)
    results: list[Result] = []
    cases = list(golden.cases())
    if not cases:
        raise GoldenError(f"{golden.folder} has no case: no */meta.json below it")
    with jax.default_matmul_precision("highest"):
        for case in cases:
            run = model_cases.CASES.get(case.name)
            if run is None:
                note = f"unknown case; known: {', '.join(sorted(model_cases.CASES))}"
                judged = [Result(case.name, "*", np.nan, np.nan, "FAIL", note)]
            else:
                judged = _judge(case, run(golden, case))
            for result in judged:
                report(result)
            results += judged
    return results


def _judge(case: Case, ours: Mapping[str, Any]) -> list[Result]:
    tolerance = COMPONENT_TOLERANCE if case.name in COMPONENTS else MODEL_TOLERANCE
    results = []
    # Outputs of the state dict's own names ("grad_norm.KEY") and scalars are given by the case with their reference.
    computed = {name: value for name, value in ours.items() if not isinstance(value, Against)}
    for name in case.tensors:
        role, label = case.role(name), f"{case.name}/{name}"
        if role == "input":
            continue
        if label in EXCLUDED:
            results.append(Result(case.name, name, np.nan, np.nan, "excluded", EXCLUDED[label]))
        elif name in computed:
            results.append(_compare(case.name, name, computed[name], case.tensors[name], tolerance))
        elif role == "output":
            note = "an output that the checker does not compute"
            results.append(Result(case.name, name, np.nan, np.nan, "FAIL", note))
    for name in case.meta.get("scalars", {}):
        label = f"{case.name}/{name}"
        if label in EXCLUDED:
            results.append(Result(case.name, name, np.nan, np.nan, "excluded", EXCLUDED[label]))
    for name, value in ours.items():
        if isinstance(value, Against):
            limit = tolerance if value.tolerance is None else value.tolerance
            results.append(
                _compare(case.name, name, value.ours, value.reference, limit, value.floor)
            )
        elif name not in case.tensors:
            note = "the checker computes it, the golden set does not have it"
            results.append(Result(case.name, name, np.nan, np.nan, "FAIL", note))
    return results


def _compare(
    case: str, name: str, ours: Any, reference: Any, tolerance: float, floor: float = 0.0
) -> Result:
    ours, reference = np.asarray(ours), np.asarray(reference)
    if ours.shape != reference.shape:
        note = f"shape {list(ours.shape)}, the golden has {list(reference.shape)}"
        return Result(case, name, np.nan, np.nan, "FAIL", note)
    error = ours.astype(np.float64) - reference.astype(np.float64)
    largest = float(np.abs(error).max(initial=0.0))
    norm = float(np.linalg.norm(reference.astype(np.float64)))
    relative = float(np.linalg.norm(error)) / norm if norm else largest
    if reference.dtype == np.uint8:
        good, note = largest <= 1, "within one level"
    elif np.issubdtype(reference.dtype, np.integer):
        good, note = largest == 0, "identical"
    else:
        good, note = relative <= tolerance or largest <= floor, ""
    return Result(case, name, largest, relative, "pass" if good else "FAIL", note if good else "")


def check_manifest(config: TunaConfig, manifest: str | Path) -> int:
    """Checks that a configuration's parameters are exactly a manifest's keys and shapes; returns their number.

    Raises:
      table.ConversionError: they differ; every tensor concerned is listed.
    """
    keys = _read_json(Path(manifest))["keys"]
    wanted = weight_map.torch_shapes(config, parameter_shapes(config))
    found = {key: tuple(entry["shape"]) for key, entry in keys.items()}
    weight_map.compare(wanted, found, optional=())
    return len(found)
