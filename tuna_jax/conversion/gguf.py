"""GGUF files of llama-style language models, read as Hugging Face state dicts.

Tensors are dequantised to float32 when they are read. llama.cpp stores the rows of query and key in the order of
interleaved RoPE; they are reordered to half-split RoPE, which Hugging Face and this code use.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tuna_jax.conversion.readers import Entry, SourceError, StateDict
from tuna_jax.utils.file_content import hint

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_ARCHITECTURES = ("llama",)


def _hugging_face(name: str) -> str:
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in _NAMES:
        raise KeyError(name)
    layer = "" if match[1] is None else f"model.layers.{match[1]}."
    return f"{layer}{_NAMES[match[2]]}.{match[3]}"


def half_split(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of a query or key projection [heads * head_dim, in] from interleaved to half-split RoPE."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _damaged(path: Path, error: Exception) -> SourceError:
    return SourceError(
        f"{path} is truncated or not a GGUF file ({error}){hint(path) or '; download it again'}"
    )


def _reader(path: Path) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise SourceError(f"{path} is a GGUF file, which requires: pip install gguf") from error
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, OSError) as error:
        raise _damaged(path, error) from error


def tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a GGUF file of SmolLM2: byte-level BPE that splits numbers into digits.

    Raises:
      SourceError: as for `open_gguf`, or the tokenizer is of another kind.
    """
    path = Path(path)
    fields = {
        name.removeprefix("tokenizer.ggml."): field
        for name, field in _reader(path).fields.items()
        if name.startswith("tokenizer.ggml.")
    }
    kind = fields["pre"].contents() if "pre" in fields else None
    if kind != "smollm":
        raise SourceError(f"{path} has a tokenizer of kind {kind!r}; only 'smollm' is supported")
    words = fields["tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["merges"].contents()]
    bpe = models.BPE(vocab={word: row for row, word in enumerate(words)}, merges=merges)
    result = Tokenizer(bpe)
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    result.decoder = decoders.ByteLevel()
    types = fields["token_type"].contents()
    special = [word for word, type_ in zip(words, types, strict=True) if type_ == 3]
    result.add_special_tokens(special)
    # Text that looks like a special token stays text: only code may add structure to a sequence.
    result.encode_special_tokens = True
    return result


def open_gguf(path: str | Path) -> StateDict:
    """Opens a GGUF file; its metadata has the model's sizes as strings, under GGUF's names without the architecture.

    Raises:
      SourceError: the package `gguf` is missing, the file is truncated, or not of a llama-style language model.
    """
    path = Path(path)
    reader = _reader(path)
    from gguf.quants import dequantize

    try:
        sizes = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith(("tokenizer.", "GGUF."))
        }
        architecture = str(sizes.get("general.architecture"))
    except (ValueError, IndexError) as error:
        raise _damaged(path, error) from error
    if architecture not in _ARCHITECTURES:
        raise SourceError(
            f"{path} has a model of architecture {architecture!r}; supported: {', '.join(_ARCHITECTURES)}"
        )
    heads = int(sizes[f"{architecture}.attention.head_count"])
    groups = int(sizes.get(f"{architecture}.attention.head_count_kv", heads))
    try:
        tensors = {_hugging_face(tensor.name): tensor for tensor in reader.tensors}
    except KeyError as error:
        raise SourceError(
            f"{path} has a tensor that llama-style models do not have: {error}"
        ) from None
    float32 = np.dtype(np.float32)
    entries = {
        key: Entry(tuple(int(n) for n in reversed(tensor.shape)), float32, str(path))
        for key, tensor in tensors.items()
    }

    def read(key: str, index: int | None) -> np.ndarray:
        tensor: Any = tensors[key]
        values = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        values = values.reshape(entries[key].shape)
        if key.endswith(("q_proj.weight", "k_proj.weight")):
            values = half_split(values, heads if "q_proj" in key else groups)
        return values if index is None else values[index]

    metadata = {
        name.removeprefix(f"{architecture}."): str(value)
        for name, value in sizes.items()
        if isinstance(value, int | float | str)
    }
    return StateDict(entries, read, metadata)
