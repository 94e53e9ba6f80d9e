"""The tokenizer: Qwen2.5's ids, TUNA's tokens, and the compact vocabulary."""

import hashlib
import json
import warnings

import pytest

from tuna_jax.data.text import qwen_bpe
from tuna_jax.data.text.tokenizer import DEFAULT_SYSTEM, Tokenizer, read_subset
from tuna_jax.emoji.world import vocabulary
from tuna_jax.emoji.world.captions import captions, questions, sentence
from tuna_jax.emoji.world.scenes import SPLITS, SceneSource
from tuna_jax.sequence import Grid, Text, Visual, build

TEXTS = (
    "Hello, world!",
    "two red apples to the left of a dog, on a blue background",
    "  spaces\n\n and\ttabs  ",
    "I'm you'RE 12345 x2 naïve Ünïcödé",
    "漢字とかな, emoji 🍎👩‍🚀, हिन्दी",
    "ﬁne ① Ⅳ x² ｆｕｌｌ",  # stay distinct under NFC
    "def f(x):\r\n    return x**2  # done",
)


@pytest.fixture(scope="module")
def full():
    return Tokenizer()


@pytest.fixture(scope="module")
def compact():
    return Tokenizer("emoji")


def test_known_ids(full):
    assert full.encode("Hello, world!") == [9707, 11, 1879, 0]
    assert full.size == 151_669
    bars = (
        "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end "
        "vision_start vision_end vision_pad image_pad video_pad"
    )
    names = [f"<|{name}|>" for name in bars.split()] + ["<tool_call>", "</tool_call>"]
    late = "fim_prefix fim_middle fim_suffix fim_pad repo_name file_sep"
    names += [f"<|{name}|>" for name in late.split()]
    assert [full.id_of(name) for name in names] == list(range(151_643, 151_665))
    tuna = ("[PAD]", "<image>", "<|vid_start|>", "<|vid_end|>")
    assert [full.id_of(name) for name in tuna] == [151_665, 151_666, 151_667, 151_668]
    special = full.special
    assert (special.bos, special.eos, special.boi, special.eoi) == (
        151_644,
        151_645,
        151_652,
        151_653,
    )
    assert (special.image_pad, special.pad) == (151_655, 151_665)


@pytest.mark.parametrize("text", TEXTS)
def test_same_ids_as_tiktoken(full, text):
    tiktoken = pytest.importorskip("tiktoken")
    encoding = tiktoken.Encoding(
        "qwen", pat_str=qwen_bpe.SPLIT, mergeable_ranks=qwen_bpe.read_ranks(), special_tokens={}
    )
    assert full.encode(text) == encoding.encode(text)


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(full, compact, text):
    assert full.decode(full.encode(text)) == text
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert compact.decode(compact.encode(text)) == text


def test_text_is_normalised_to_composed_characters(full):
    assert full.encode("e\u0301") == full.encode("\u00e9")


def test_text_never_becomes_structure(full, compact):
    for text in ("<|im_end|>", "<image>", "[PAD]", "<|vision_start|>x"):
        assert not set(full.encode(text)) & set(range(151_643, 151_669))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ids = compact.encode(text)
        assert compact.decode(ids) == text, "an id of the text was taken for a special token"


def test_decode_leaves_special_tokens_out(full):
    ids = [full.special.bos, *full.encode("a dog"), full.special.eos, full.special.pad]
    assert full.decode(ids) == "a dog"
    assert full.decode(ids, skip_special=False) == "<|im_start|>a dog<|im_end|>[PAD]"
    with pytest.raises(ValueError, match="151669"):
        full.decode([151_669])


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("text", TEXTS)
def test_parts_of_a_text_are_never_broken_characters(full, compact, text, size):
    """The compact vocabulary spells most of these in bytes, several tokens per character."""
    for tokenizer in (full, compact):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ids = tokenizer.encode(text)
        parts = [ids[i : i + size] for i in range(0, len(ids), size)]
        pieces = list(tokenizer.decode_parts(parts))
        assert "".join(pieces) == text
        assert all(pieces) and "\ufffd" not in "".join(pieces)
        assert len(pieces) > 1 or len(ids) <= size * 4


def test_broken_characters_come_once_they_are_certain(compact):
    """Half an apple, then a word; and half an apple at the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        apple, word = compact.encode("🍎"), compact.encode("ab")
    half = apple[:2]
    assert len(apple) == 4
    assert list(compact.decode_parts([word, half, word])) == ["ab", "\ufffdab"]
    assert list(compact.decode_parts([word, half, apple])) == ["ab", "\ufffd🍎"]
    assert list(compact.decode_parts([word, half, []])) == ["ab", "\ufffd"]
    assert list(compact.decode_parts([[], []])) == []


def test_shipped_vocabulary_is_current():
    """If this fails, run: python -m tuna_jax.emoji.world.vocabulary"""
    shipped = json.loads(vocabulary.EMOJI.read_text())
    assert shipped["ids"] == vocabulary.emoji_ids()
    assert shipped["source_sha256"] == qwen_bpe.RANKS_SHA256
    assert len(shipped["ids"]) <= 640


def test_the_vocabulary_of_all_tasks_is_current_and_the_demos_ids_are_unchanged():
    """If this fails, run: python -m tuna_jax.emoji.world.vocabulary --kind emoji_all"""
    ids = read_subset("emoji_all")
    assert list(ids) == vocabulary.emoji_ids("emoji_all")
    assert set(read_subset("emoji")) < set(ids) and len(ids) <= 640
    # Trained models depend on the ids and their order; the file's description may change.
    listed = json.dumps(json.loads(vocabulary.EMOJI.read_text())["ids"])
    digest = hashlib.sha256(listed.encode()).hexdigest()
    assert digest == "9a12b1d2fc5175f6cf2e6a8db972df16678662c3044bb1f10183fe513b8fe4e0"


def test_the_world_needs_no_fallback(compact):
    full = Tokenizer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for split in SPLITS:
            source = SceneSource(split, 99)
            for scene in (source[i] for i in range(400)):
                texts = [*captions(scene), *map(sentence, captions(scene))]
                texts += [text for item in questions(scene) for text in item[:2]]
                texts += [sentence(item.question) for item in questions(scene)]
                for text in texts:
                    assert len(compact.encode(text)) == len(full.encode(text))


def test_compact_ids_are_positions_in_the_list(compact):
    kept = read_subset("emoji")
    full = Tokenizer()
    text = "an owl below three red apples"
    assert [kept[i] for i in compact.encode(text)] == full.encode(text)
    assert kept[compact.special.eos] == 151_645
    assert compact.size == len(kept)


def test_unknown_words_are_spelled_and_named_once():
    compact = Tokenizer("emoji")
    with pytest.warns(UserWarning, match="'zebra'"):
        ids = compact.encode("on a zebra")
    assert compact.decode(ids) == "on a zebra"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compact.encode("two zebra")
    with pytest.warns(UserWarning, match="'giraffes,'"):
        compact.encode("a dog\ngiraffes, and")


def test_a_subset_from_ids_or_file(tmp_path, compact):
    ids = read_subset("emoji")
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"ids": list(ids)}))
    assert (
        Tokenizer(path).encode("a dog")
        == Tokenizer(list(ids)).encode("a dog")
        == compact.encode("a dog")
    )


def test_invalid_subsets_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"klingon.*emoji"):
        Tokenizer("klingon")
    with pytest.raises(ValueError, match="twice"):
        Tokenizer([1, 1])
    with pytest.raises(ValueError, match="151669"):
        Tokenizer([*range(256), 151_669])
    with pytest.raises(ValueError, match=r"lacks.*<\|im_start\|>"):
        Tokenizer(range(256))


def test_a_wrong_vocabulary_file_is_refused(tmp_path):
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(qwen_bpe.ranks_file().read_bytes()[:-10])
    with pytest.raises(ValueError, match="SHA-256"):
        qwen_bpe.read_ranks(path)


def test_chat_template(full):
    messages = [
        {"role": "user", "content": "<image>\nwhat is this?"},
        {"role": "assistant", "content": "a dog"},
        {"role": "user", "content": "where?"},
    ]
    segments = full.chat(messages, grids=[Grid(1, 2, 2)], answer=True)
    sequence = build(segments, full.special)
    text = full.decode(sequence.tokens.tolist(), skip_special=False)
    assert text == (
        f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>"
        * 5
        + "<|vision_end|>what is this?<|im_end|>\n"
        "<|im_start|>assistant\na dog<|im_end|>\n"
        "<|im_start|>user\nwhere?<|im_end|>\n<|im_start|>assistant\n"
    )
    learned = [int(i) for i in sequence.labels if i >= 0]
    assert learned == [*full.encode("a dog"), full.special.eos]
    assert [type(segment) for segment in segments].count(Visual) == 1
    offset, length = sequence.spans[0]
    assert length == 5
    assert sequence.tokens[offset - 1] == full.special.boi
    assert sequence.tokens[offset + length] == full.special.eoi


def test_chat_with_a_custom_system_message(full):
    segments = full.chat(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    )
    assert all(isinstance(segment, Text) for segment in segments)
    text = full.decode(build(segments, full.special).tokens.tolist(), skip_special=False)
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"


def test_invalid_chats_are_named(full):
    with pytest.raises(ValueError, match="1 <image>"):
        full.chat([{"role": "user", "content": "<image>"}])
    with pytest.raises(ValueError, match="'robot'"):
        full.chat([{"role": "robot", "content": "beep"}])


def test_from_a_hugging_face_folder(tmp_path, full):
    """A folder without TUNA's tokens, in both of the formats that exist; editors may add a mark of byte order."""
    ranks = qwen_bpe.read_ranks()
    vocabulary_entries = {qwen_bpe.spell(token): rank for token, rank in ranks.items()}
    merges = qwen_bpe.merges(ranks)
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "vocab.json").write_text(json.dumps(vocabulary_entries), "utf-8-sig")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (tmp_path / "slow" / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8-sig")
    plain = qwen_bpe.assemble(vocabulary_entries, merges)
    qwen_bpe.add_tokens(plain, qwen_bpe.QWEN_SPECIAL)
    (tmp_path / "fast").mkdir()
    (tmp_path / "fast" / "tokenizer.json").write_text(plain.to_str(), "utf-8-sig")
    for kind in ("slow", "fast"):
        loaded = Tokenizer.from_pretrained(tmp_path / kind)
        assert loaded.size == full.size
        assert loaded.special == full.special
        for text in TEXTS:
            assert loaded.encode(text) == full.encode(text)
    small = Tokenizer.from_pretrained(tmp_path / "fast", "emoji")
    assert small.encode("a dog") == Tokenizer("emoji").encode("a dog")


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        Tokenizer.from_pretrained(tmp_path)
