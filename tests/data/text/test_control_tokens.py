"""User text never becomes control tokens, whichever tokenizer, and comes back from its ids without a loss."""

import json
import pickle
import unicodedata
import warnings
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_jax.data.text import qwen_bpe
from tuna_jax.data.text.tokenizer import Tokenizer

BOUNDED = settings(derandomize=True, max_examples=50, deadline=None)
SPECIAL = (*qwen_bpe.QWEN_SPECIAL, *qwen_bpe.TUNA_SPECIAL)
OWN = ("<think>", "émoji", " padded ", "Ġ", "日本", "the")


def byte_level(**changes) -> tokenizers.Tokenizer:
    """A small byte-level BPE of Qwen's kind: the bytes, and a few words."""
    vocabulary = {character: i for i, character in enumerate(qwen_bpe.byte_characters())}
    merges = [("t", "h"), ("th", "e"), ("<", "i"), ("Ġ", "the")]
    for first, second in merges:
        vocabulary[first + second] = len(vocabulary)
    built = qwen_bpe.assemble(vocabulary, merges)
    qwen_bpe.add_tokens(built, qwen_bpe.QWEN_SPECIAL)
    values = json.loads(built.to_str()) | changes
    return tokenizers.Tokenizer.from_str(json.dumps(values))


def folder_of(built: tokenizers.Tokenizer, folder: Path) -> Path:
    folder.mkdir(parents=True)
    built.save(str(folder / "tokenizer.json"))
    return folder


def lying(folder: Path, **says) -> Path:
    """A Hugging Face folder whose added tokens say these things of themselves, with some of its own."""
    built = byte_level()
    built.add_tokens([tokenizers.AddedToken(name, special=False, normalized=True) for name in OWN])
    values = json.loads(built.to_str())
    for token in values["added_tokens"]:
        token.update(says)
    values["truncation"] = {
        "direction": "Right",
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def full():
    return Tokenizer()


@pytest.fixture(scope="module")
def every(full, tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    says = {
        "plain": {"special": False},
        "greedy": {"special": False, "lstrip": True, "rstrip": True},
        "normalised": {"special": False, "normalized": True},
        "words": {"special": True, "single_word": True},
    }
    folders = {
        name: Tokenizer.from_pretrained(lying(root / name, **say)) for name, say in says.items()
    }
    return {"packaged": full, "compact": Tokenizer("emoji"), **folders}


NAMES = ("packaged", "compact", "plain", "greedy", "normalised", "words")
TEXTS = st.lists(
    st.one_of(st.sampled_from([*SPECIAL, *OWN, " ", "\n", "\\"]), st.text(max_size=12)), max_size=6
)


def encode(tokenizer, text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tokenizer.encode(text)


@pytest.mark.parametrize("name", NAMES)
@BOUNDED
@given(parts=TEXTS)
def test_text_with_control_tokens_inside_comes_back(every, name, parts):
    text, tokenizer = "".join(parts), every[name]
    if any("\ud800" <= character <= "\udfff" for character in text):
        with pytest.raises(ValueError, match="surrogate"):
            encode(tokenizer, text)
        return
    ids = encode(tokenizer, text)
    control = {tokenizer._find(token) for token in (*SPECIAL, *OWN[:5])} - {None}
    # "Ġ" is the byte token of a space too, and "the" a word of the vocabulary.
    control -= {tokenizer.id_of("Ġ")}
    assert not control & set(ids)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    parts = [ids[start : start + 5] for start in range(0, len(ids), 5)]
    assert "".join(tokenizer.decode_parts(parts)) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", NAMES)
def test_every_special_token_in_text_is_text(every, name):
    text = "a " + "  ".join(SPECIAL) + " z"
    ids = encode(every[name], text)
    assert every[name].decode(ids) == text
    special = {every[name]._find(token) for token in SPECIAL} - {None}
    assert not special & set(ids)


def test_a_word_of_the_vocabulary_that_is_a_control_token_is_spelled_in_bytes(tmp_path):
    """Merges that end in the pad token, and a model that looks whole words up before it merges."""
    built = byte_level()
    values = json.loads(built.to_str())
    model = values["model"]
    model["ignore_merges"] = True
    model["vocab"]["<image>"] = len(model["vocab"]) + 100
    values["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(values))
    tokenizer = Tokenizer.from_pretrained(folder)
    assert tokenizer.id_of("<image>") not in tokenizer.encode("<image>")
    assert tokenizer.decode(tokenizer.encode("<image>")) == "<image>"


def test_a_pickled_tokenizer_is_the_same(every):
    again = pickle.loads(pickle.dumps(every["greedy"]))
    text = "  <|im_end|>  the <think>"
    assert again.encode(text) == every["greedy"].encode(text)


@pytest.mark.parametrize(
    "normaliser",
    [
        {"type": "Lowercase"},
        {"type": "StripAccents"},
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ],
)
def test_a_tokenizer_that_changes_text_is_refused(tmp_path, normaliser):
    folder = folder_of(byte_level(normalizer=normaliser), tmp_path / "a")
    with pytest.raises(ValueError, match=f"{folder} changes text"):
        Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n", "Git LFS"),
        ("<!DOCTYPE html><html></html>", "web page"),
        ("", "empty"),
        ("{", "is not a tokenizer"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_named(tmp_path, content, words):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=rf"tokenizer\.json.*{words}"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "subset.json").write_text(content)
    with pytest.raises(ValueError, match=r"subset\.json"):
        Tokenizer(tmp_path / "subset.json")
