"""Compares our model with a golden set of the released PyTorch code.

A golden set is a folder of cases (`tensors.safetensors` and `meta.json`) with a tiny state dict. `verify` converts the
state dict with the weight map, runs every case (`model_cases.py`), and compares each tensor of role `output`, and each
`intermediate` that our model has too. An unknown case, or an output that is not computed, is a failure.
"""

from __future__ import annotations

import dataclasses
import re
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
from tuna_jax.parity.component_cases import is_clip_length
from tuna_jax.parity.golden_set import Case, Comparison, GoldenError, GoldenSet, load, read_json

# Faults of the released code that are neither reproduced nor compared, as listed in the README of the goldens.
_NO_ROPE = (
    "the released code applies no RoPE in a batch without images, and nothing uses this output"
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
    "full_mmu/noise_loss_official": "NaN without flow targets; ours is the text loss",
    "transport/loss_empty_mask_official": "NaN of an empty mask; ours is 0 (loss.empty_mask)",
    "text_only/x0_pred_all_norm": _NO_ROPE,
    "full_mmu/wrapper_total_loss_mmu": "NaN without flow targets; ours is the text loss",
    "vae_video/latents_11f": "the released code drops two of 11 frames; ours raises an error",
    "vae_video/log_var_11f": "the released code drops two of 11 frames; ours raises an error",
}
# Pictures of Tuna-R's pipeline, which stretches a batch to its range; `uint8_clamped` is compared in their place.
_STRETCHED = re.compile(r"t2i_generate\w*/uint8")
# A golden set may have clips of other lengths that are not 1 + 4k; the rule is `is_clip_length`.
_OF_A_CLIP = re.compile(r"vae_video/(?:latents|log_var|decoded)_(\d+)f")


def excluded(label: str, temporal_factor: int = 4, clamped: bool = False) -> str:
    """Why a tensor, CASE/NAME, is not compared; '' if it is.

    Args:
      label: the tensor.
      temporal_factor: of the VAE.
      clamped: whether its case has `uint8_clamped`.
    """
    if clamped and _STRETCHED.fullmatch(label):
        return "the released pipeline stretches a batch to its range; ours clamps (uint8_clamped)"
    match = _OF_A_CLIP.fullmatch(label)
    if match and not is_clip_length(int(match[1]), temporal_factor):
        return (
            f"{match[1]} frames are not 1 + {temporal_factor}k: the released code drops the last ones; ours raises an "
            f"error"
        )
    return EXCLUDED.get(label, "")


# Largest relative L2 error: of single components, and of cases that run the whole model.
COMPONENT_TOLERANCE, MODEL_TOLERANCE = 1e-5, 1e-4
COMPONENTS = ("components", "siglip", "llm", "vae_image", "vae_video", "transport")


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of one comparison.

    Attributes:
      case, tensor: names of the compared tensor.
      max_abs: largest absolute error.
      relative: relative L2 error.
      status: 'pass', 'FAIL' or 'excluded'.
      note: the reason of a failure or exclusion.
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
    """Runs every case of a golden set.

    Args:
      folder: the golden set.
      report: called with every result as soon as its case is complete.

    Returns:
      All results; the module's docstring says which are failures.

    Raises:
      GoldenError: the golden set cannot be read.
    """
    from tuna_jax.parity import model_cases, pixel_cases

    golden = load(folder)
    known = pixel_cases.CASES if golden.config.vae is None else model_cases.CASES
    results: list[Result] = []
    cases = list(golden.cases())
    if not cases:
        raise GoldenError(f"{golden.folder} has no case: it contains no */meta.json")
    with jax.default_matmul_precision("highest"):
        for case in cases:
            run = known.get(case.name)
            if run is None:
                note = f"unknown case; the cases are {', '.join(sorted(known))}"
                case_results = [Result(case.name, "*", np.nan, np.nan, "FAIL", note)]
            else:
                case_results = _run_case(golden, case, run)
            for result in case_results:
                report(result)
            results += case_results
    return results


def _run_case(golden: GoldenSet, case: Case, run: Callable[..., Mapping[str, Any]]) -> list[Result]:
    """The results of a case; a single failure if it raises, so that the cases after it are run too."""
    try:
        return compare_case(case, run(golden, case), golden.config.space.temporal_factor)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        known = isinstance(error, (GoldenError, ValueError)) and reason
        note = reason if known else f"{type(error).__name__}: {reason}"
        return [Result(case.name, "*", np.nan, np.nan, "FAIL", note)]


def compare_case(case: Case, ours: Mapping[str, Any], temporal_factor: int = 4) -> list[Result]:
    """Compares our values with the tensors of a case; see the module's docstring."""
    tolerance = COMPONENT_TOLERANCE if case.name in COMPONENTS else MODEL_TOLERANCE
    results = []
    # A `Comparison` has its own reference: scalars, and values by key of the state dict ("grad_norm.KEY").
    computed = {name: value for name, value in ours.items() if not isinstance(value, Comparison)}
    for name in case.tensors:
        role, label = case.role(name), f"{case.name}/{name}"
        if role == "input":
            continue
        if reason := excluded(label, temporal_factor, "uint8_clamped" in case.tensors):
            results.append(Result(case.name, name, np.nan, np.nan, "excluded", reason))
        elif name in computed:
            results.append(_compare(case.name, name, computed[name], case.tensors[name], tolerance))
        elif role == "output":
            note = "an output that is not computed"
            results.append(Result(case.name, name, np.nan, np.nan, "FAIL", note))
    for name in case.meta.get("scalars", {}):
        label = f"{case.name}/{name}"
        if reason := excluded(label, temporal_factor):
            results.append(Result(case.name, name, np.nan, np.nan, "excluded", reason))
    for name, value in ours.items():
        if isinstance(value, Comparison):
            limit = tolerance if value.tolerance is None else value.tolerance
            results.append(
                _compare(case.name, name, value.ours, value.reference, limit, value.floor)
            )
        elif name not in case.tensors:
            note = "the golden set does not have this tensor"
            results.append(Result(case.name, name, np.nan, np.nan, "FAIL", note))
    return results


def _compare(
    case: str, name: str, ours: Any, reference: Any, tolerance: float, floor: float = 0.0
) -> Result:
    ours, reference = np.asarray(ours), np.asarray(reference)
    if ours.shape != reference.shape:
        note = f"shape {list(ours.shape)}, the golden tensor has {list(reference.shape)}"
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
    """Checks that a config has exactly the keys and shapes of a manifest; returns their number.

    Raises:
      ConversionError: they differ; the message lists all tensors concerned.
    """
    keys = read_json(Path(manifest))["keys"]
    expected = weight_map.torch_shapes(config, parameter_shapes(config))
    shapes = {key: tuple(entry["shape"]) for key, entry in keys.items()}
    weight_map.compare(expected, shapes, optional=())
    return len(shapes)
