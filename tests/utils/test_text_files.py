"""Lines, encodings and JSON lines; and no other module of the package splits or decodes text files itself."""

import ast
import json
from pathlib import Path

import pytest

from tuna_jax.utils import text_files
from tuna_jax.utils.text_files import (
    check_texts,
    json_line,
    numbered_lines,
    read_json,
    read_json_lines,
    read_log,
    read_text,
    split_lines,
)

ROOT = Path(__file__).parents[2]
ODD = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg"

# The output of programs and the kernel's files, which no user writes.
PROGRAM_OUTPUT = {
    "tuna_jax/perf/baseline_worker.py",
    "tuna_jax/planning/compiler.py",
    "tuna_jax/planning/golden_shardings.py",
    "tuna_jax/utils/compile_cache.py",
    "tuna_jax/utils/file_systems.py",
}


def calls(path: Path, *names: str) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.func.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in names
    ]


def test_nobody_splits_or_decodes_text_files_elsewhere() -> None:
    files = sorted((ROOT / "tuna_jax").rglob("*.py"))
    assert len(files) > 150
    split = [call for path in files for call in calls(path, "splitlines", "readlines")]
    assert split == [], "use utils/text_files.py: splitlines splits inside of JSON strings"
    decoded = [
        call
        for path in files
        if path.relative_to(ROOT).as_posix() not in PROGRAM_OUTPUT
        for call in calls(path, "read_text")
    ]
    assert decoded == [], "use utils/text_files.py: read_text keeps a byte order mark"


def test_a_line_ends_at_a_newline_and_nowhere_else() -> None:
    assert split_lines(f"{ODD}\r\n\nx") == [ODD, "", "x"]
    assert split_lines("") == [] and split_lines("\n") == [""] and split_lines("a\n") == ["a"]
    assert split_lines("a\rb\r") == ["a", "b"]  # Nothing else ends a line there.
    assert split_lines("a\rb\nc") == ["a\rb", "c"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])  # fmt: skip
def test_a_mark_of_byte_order_is_no_part_of_the_text(tmp_path, encoding) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(f'{{"é": "{ODD[:3]}"}}\n'.encode(encoding))
    assert read_json(path) == {"é": ODD[:3]}
    assert numbered_lines(path) == [(1, f'{{"é": "{ODD[:3]}"}}')]
    # Two files that were joined, each with its mark.
    path.write_bytes(b"\xef\xbb\xbfa\n" * 2)
    assert numbered_lines(path) == [(1, "a"), (2, "a")]


def test_what_is_not_text_is_named_with_its_line(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ntwo \xe9\n")
    with pytest.raises(ValueError, match=r"a\.txt:2: not UTF-8"):
        read_text(path)
    path.write_text("{}\n" + "[" * 100_000)
    with pytest.raises(ValueError, match=r"a\.txt:2: not JSON"):
        list(read_json_lines(path))
    path.write_text("9" * 5000)
    with pytest.raises(ValueError, match=r"a\.txt: not JSON"):
        read_json(path)


def test_json_lines_and_arrays(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json_line({"a": ODD}) + "\r\n" + json_line([1]), encoding="utf-8", newline="")
    assert list(read_json_lines(path)) == [(f"{path}:1", {"a": ODD}), (f"{path}:3", [1])]
    path.write_text(json.dumps([{"a": 1}, {"a": 2}], indent=1))
    assert [value for _, value in read_json_lines(path)] == [{"a": 1}, {"a": 2}]
    path.write_text("[1]\n[2]\n")
    assert [value for _, value in read_json_lines(path)] == [[1], [2]]


def test_a_log_keeps_every_whole_line_and_skips_torn_ones(tmp_path) -> None:
    path = tmp_path / "log.jsonl"
    rows = [{"text": ODD}, {"text": "caf\udce9 \ud83d"}]
    torn = b'{"text": "\xe2\x80' + b"\n" + b"\0\0\0\n3\n" + b'{"te'
    path.write_bytes("".join(map(json_line, rows)).encode() + torn)
    assert read_log(path) == rows


def test_half_of_a_surrogate_pair_is_named() -> None:
    with pytest.raises(ValueError, match=r"x\.jsonl:3.*U\+DCE9"):
        check_texts({"a": ["é", {"b\udce9": 1}]}, "x.jsonl:3")
    check_texts({"a": [ODD, "😀", None, 1.5]}, "x.jsonl:3")
    assert text_files.surrogate_in("ab\ud83d").startswith("character 3")
