"""The data set of the art, and the nouns of the demo."""

import subprocess
import sys

import numpy as np
import pytest

from tuna_jax.emoji.world import NOUNS, all_names, data_source, load_art, noun
from tuna_jax.emoji.world import emoji_dataset_builder as builder


def test_there_are_64_short_distinct_nouns():
    words = [item.singular for item in NOUNS]
    assert len(words) == len(set(words)) == 64
    assert len({item.official for item in NOUNS}) == 64
    assert all(len(word.split()) <= 2 for word in words)
    assert len({item.plural for item in NOUNS}) == 64


@pytest.mark.parametrize(
    ("word", "one", "plural"),
    [
        ("red apple", "a red apple", "red apples"),
        ("owl", "an owl", "owls"),
        ("fox", "a fox", "foxes"),
        ("bus", "a bus", "buses"),
        ("butterfly", "a butterfly", "butterflies"),
        ("fish", "a fish", "fish"),
        ("octopus", "an octopus", "octopuses"),
        ("umbrella", "an umbrella", "umbrellas"),
    ],
)
def test_articles_and_plurals(word, one, plural):
    assert noun(word).one == one
    assert noun(word).plural == plural


def test_an_unknown_noun_is_an_error_that_lists_the_known_ones():
    with pytest.raises(KeyError, match="zebra.*red apple"):
        noun("zebra")


def test_sprites_are_straight_rgba_and_all_different():
    art = load_art([item.singular for item in NOUNS])
    assert art.shape == (64, 72, 72, 4)
    assert art.dtype == np.uint8
    covered = (art[..., 3] > 128).mean((1, 2))
    assert covered.min() > 0.15, "an emoji is almost empty"
    assert len({sprite.tobytes() for sprite in art}) == 64


def test_channel_order_is_red_green_blue():
    heart = load_art(["heart"])[0]
    red, green, blue = heart[heart[..., 3] == 255][:, :3].mean(0)
    assert red > 2 * green
    assert red > 2 * blue


def test_official_names_are_accepted():
    np.testing.assert_array_equal(load_art(["dog face"]), load_art(["dog"]))


def test_an_unknown_name_is_an_error_with_the_nearest_name():
    with pytest.raises(KeyError, match=r"doog.*'dog'"):
        load_art(["doog"])


def test_file_names_without_variation_selector():
    files = {name: path.name for name, _, _, path in builder.entries()}
    assert files["airplane"] == "2708.png"  # U+2708 U+FE0F
    assert not any("skin tone" in name for name in files)
    assert len(files) > 1500


def test_flags_are_excluded_by_default():
    names = all_names()
    assert "lion" in names
    assert "France" not in names
    assert "France" in all_names(without=())
    assert len(all_names(without=())) > len(names) + 200


def test_builds_once_without_tensorflow(tmp_path):
    program = (
        "import sys\n"
        "from tuna_jax.emoji.world import data_source, load_art\n"
        f"source = data_source({str(tmp_path)!r})\n"
        "record = source[0]\n"
        "assert record['image'].shape == (72, 72, 4)\n"
        "assert 'tensorflow' not in sys.modules\n"
        f"print(load_art(['heart'], {str(tmp_path)!r}).mean())\n"
    )
    first = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "building" in first.stderr
    files = list(tmp_path.rglob("*.array_record*"))
    assert len(files) == 1
    assert not list(tmp_path.rglob(".building*")), "scratch files were left behind"
    second = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "building" not in second.stderr
    assert second.stdout == first.stdout


def test_records_have_name_category_and_code_points():
    source = data_source()
    records = {record["name"].decode(): record for record in (source[i] for i in range(40))}
    codes = {name: codes for name, codes, _, _ in builder.entries()}
    for name, record in records.items():
        spelled = " ".join(f"U+{code:04X}" for code in codes[name])
        assert record["codepoints"].decode() == spelled
        assert record["category"].decode()
