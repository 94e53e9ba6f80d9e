"""LoRA adapters in the files of PEFT (github.com/huggingface/peft): `adapter_config.json` and
`adapter_model.safetensors`.

A PEFT file has `base_model.model.MODULE.lora_A.weight` [rank, in] and `lora_B.weight` [out, rank] for every module,
each layer by itself; ours are stacked and transposed. The names of modules are those of a Hugging Face Qwen2.5
(`model.layers.0.self_attn.q_proj`), or of the released TUNA (`tuna.model.layers.0...`, `diffusion_head_a.0...`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tuna_jax.adapters import lora
from tuna_jax.config import TunaConfig
from tuna_jax.conversion import weight_map
from tuna_jax.conversion.adapter_source import Adapter
from tuna_jax.conversion.readers import SourceError
from tuna_jax.conversion.weight_rows import Row
from tuna_jax.utils import safetensors_files
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.text_files import read_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")


class Imported(NamedTuple):
    """An adapter that was read from PEFT's files.

    Attributes:
      arrays: a trained tree by dotted name, see `adapters/lora.py`; float32.
      rank, alpha: of the matrices.
      base: the model that PEFT names, or ''.
    """

    arrays: dict[str, np.ndarray]
    rank: int
    alpha: float
    base: str


def rows(config: TunaConfig, part: str = "") -> list[Row]:
    """The weight map of 'language' (a Hugging Face Qwen2.5), or of '' (the released TUNA)."""
    return weight_map.language_rows(config, "") if part == "language" else weight_map.rows(config)


def write(adapter: Adapter, folder: str | Path, *, part: str = "") -> list[str]:
    """Writes PEFT's files, and returns the names of our parameters that are not in the part, which are left out.

    Args:
      adapter: the adapter.
      folder: is created; it must not exist, or be empty.
      part: 'language': for a Hugging Face Qwen2.5; '': for the released TUNA.

    Raises:
      FileExistsError: the folder is not empty.
      ValueError: the part has nothing that the adapter changed, or a parameter that PEFT cannot store.
    """
    folder, own = Path(folder), adapter.read()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} already exists and is not overwritten; use another output, or move it away"
        )
    tensors: dict[str, np.ndarray] = {}
    adapted: list[Row] = []
    whole: list[Row] = []
    done: set[str] = set()
    for row in rows(adapter.config, part):
        path = row.path.removesuffix(".kernel")
        if row.path != path and path + lora.A in own:
            adapted.append(row)
            done |= {path + lora.A, path + lora.B}
            for index, name in enumerate(row.names()):
                a, b = own[path + lora.A], own[path + lora.B]
                if row.layers is not None:
                    a, b = a[index], b[index]
                module = _PREFIX + name.removesuffix(".weight")
                down = np.ascontiguousarray(row.transform.to_torch(a))
                tensors[f"{module}.lora_A.weight"] = down
                # Of a convolution, the second matrix is one of 1 x 1.
                tensors[f"{module}.lora_B.weight"] = b.T.reshape(
                    *b.T.shape, *(1,) * (down.ndim - 2)
                )
        elif row.path in own:
            whole.append(row)
            done.add(row.path)
            for index, name in enumerate(row.names()):
                leaf = own[row.path] if row.layers is None else own[row.path][index]
                tensors[_PREFIX + name] = row.transform.to_torch(leaf)
    if not done:
        raise ValueError(
            f"the adapter in {adapter.path} changes nothing in {part or 'the released layout'}; it has "
            f"{', '.join(sorted(own))}"
        )
    if any(row.path == "language.embedding" for row in whole):
        raise ValueError(
            f"the adapter in {adapter.path} has the whole token table (config.lora.trained), which PEFT stores only "
            f"with its text head; merge the adapter (`tuna-jax convert merge_adapter`) and convert the model"
        )
    folder.mkdir(parents=True, exist_ok=True)
    safetensors_files.write(folder / WEIGHTS_FILE, tensors, {"format": "pt"})
    with atomic_file(folder / CONFIG_FILE) as scratch:
        text = json.dumps(_config(adapter, adapted, whole, part), indent=2)
        scratch.write_text(text + "\n", encoding="utf-8")
    return sorted(set(own) - done)


def _config(
    adapter: Adapter, adapted: Sequence[Row], whole: Sequence[Row], part: str
) -> dict[str, Any]:
    modules = [row.torch.removesuffix(".weight") for row in adapted]
    # In a Qwen2.5 the last names are unique, and other readers of PEFT's files want a list of them.
    targets: Any = sorted({module.split(".")[-1] for module in modules})
    if part != "language":
        patterns = [re.escape(module).replace(r"\{\}", r"\d+") for module in modules]
        targets = "|".join(patterns)
    saved = sorted({name.rsplit(".", 1)[0] for row in whole for name in row.names()})
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if part == "language" else None,
        "base_model_name_or_path": adapter.record.base,
        "r": adapter.record.rank,
        "lora_alpha": adapter.record.alpha,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "modules_to_save": saved or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def read(folder: str | Path, config: TunaConfig) -> Imported:
    """Reads PEFT's files of an adapter of a Qwen2.5 or of the released TUNA.

    Layers that the adapter does not change get zeros. Modules may have other ranks and alphas (`rank_pattern`,
    `alpha_pattern`): they are padded to the largest rank, and b is scaled.

    Args:
      folder: with `adapter_config.json` and `adapter_model.safetensors`.
      config: the model that the adapter is for.

    Raises:
      FileNotFoundError: there are no such files.
      SourceError: another method than LoRA, an option that has no counterpart here, or a module that the model does not
        have; all such modules are listed.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"there is no {name} in {folder}; it is not an adapter of PEFT")
    settings = read_json(folder / CONFIG_FILE)
    _check_settings(folder, settings)
    tensors, _ = safetensors_files.read(folder / WEIGHTS_FILE)
    table = _table(config)
    modules: dict[str, dict[str, np.ndarray]] = {}
    arrays: dict[str, np.ndarray] = {}
    unknown = []
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        name = match[1] if match else key.removeprefix(_PREFIX).removesuffix(".weight")
        suffix = ".weight" if match or key.endswith(".weight") else ""
        row, index = table.get(name + suffix, (None, 0))
        if row is None:
            unknown.append(key)
        elif match:
            modules.setdefault(name, {})[match[2]] = tensor.astype(np.float32)
        elif row.layers is None:
            arrays[row.path] = row.transform.to_ours(tensor.astype(np.float32))
        else:
            whole = row.transform.to_ours(tensor.astype(np.float32))
            stacks.setdefault(row.path, {})[index] = whole
    if unknown:
        raise SourceError(
            f"{folder}: the model has no {', '.join(unknown[:8])} ({len(unknown)} tensors); it is an adapter of "
            f"another model than {config.language.layers} layers of Qwen2.5 or the released TUNA"
        )
    for path, parts in stacks.items():
        layers = next(row.layers for row, _ in table.values() if row.path == path) or 0
        if len(parts) != layers:
            raise SourceError(
                f"{folder}: it has {len(parts)} of the {layers} layers of {path} whole"
            )
        arrays[path] = np.stack([parts[index] for index in range(layers)])
    if not modules and not arrays:
        raise SourceError(f"{folder / WEIGHTS_FILE} has no tensors of an adapter")
    rank = max((pair["A"].shape[0] for pair in modules.values()), default=int(settings["r"]))
    scales = {name: _scale(settings, name, pair["A"].shape[0]) for name, pair in modules.items()}
    common = scales[next(iter(scales))] if len({*scales.values()}) == 1 else 1.0
    for name, pair in modules.items():
        row, index = table[name + ".weight"]
        path = row.path.removesuffix(".kernel")
        own = pair["A"].shape[0]
        a = row.transform.to_ours(pair["A"])
        b = pair["B"].reshape(pair["B"].shape[:2]).T * np.float32(scales[name] / common)
        stack = () if row.layers is None else (row.layers,)
        whole_a = arrays.setdefault(path + lora.A, np.zeros((*stack, len(a), rank), np.float32))
        whole_b = arrays.setdefault(path + lora.B, np.zeros((*stack, rank, b.shape[1]), np.float32))
        place = () if row.layers is None else (index,)
        whole_a[(*place, slice(None), slice(own))] = a
        whole_b[(*place, slice(own))] = b
    base = settings.get("base_model_name_or_path") or ""
    return Imported(arrays, rank, common * rank, base)


def _table(config: TunaConfig) -> dict[str, tuple[Row, int]]:
    """PyTorch key -> its row of the weight map and its layer, in both layouts."""
    both = rows(config, "language")
    if config.design in ("cascade", "latent_only"):
        both = [*both, *rows(config)]
    return {name: (row, index) for row in both for index, name in enumerate(row.names())}


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    refused = {
        "use_dora": (False, None),
        "fan_in_fan_out": (False, None),
        "lora_bias": (False, None),
        "bias": ("none", None),
    }
    if settings.get("peft_type") != "LORA":
        raise SourceError(
            f"{folder / CONFIG_FILE}: peft_type is {settings.get('peft_type')!r}; only 'LORA' can be read"
        )
    for key, accepted in refused.items():
        if settings.get(key) not in accepted:
            raise SourceError(
                f"{folder / CONFIG_FILE}: {key} is {settings[key]!r}, which has no counterpart here; merge the adapter "
                f"in PEFT (`merge_and_unload`) and convert the model"
            )


def _scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """The factor of a module's product, as PEFT computes it."""
    alpha = settings["lora_alpha"]
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return float(alpha) / (rank**0.5 if settings.get("use_rslora") else rank)
