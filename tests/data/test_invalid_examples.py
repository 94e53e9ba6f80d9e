"""The list of invalid examples: each once, counted by kind, and a limit on their share."""

import errno
import json
import pickle
import threading

import pytest

from tuna_jax.data.invalid_examples import (
    KINDS,
    Fault,
    InvalidExample,
    InvalidExamples,
    TooManyInvalidExamples,
    report_as_invalid,
)


def invalid(line: int, kind: str = "missing_file") -> InvalidExample:
    return InvalidExample(kind, "m.jsonl", line, "é.jpg does not exist")


def entries(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_example_is_listed_once_and_counted_by_kind(tmp_path) -> None:
    path = tmp_path / "run" / "invalid_examples.jsonl"
    log = InvalidExamples(path)
    for example in (invalid(3), invalid(4, "tiny_image"), invalid(3), invalid(5)):
        log.add(example)
    log.add_scanned("m.jsonl", 100, [invalid(5), invalid(9, "empty_text")])
    assert log.counts() == {"empty_text": 1, "missing_file": 2, "tiny_image": 1}
    assert [entry["line"] for entry in entries(path)] == [3, 4, 5, 9]
    assert entries(path)[0] == {
        "source": "m.jsonl", "line": 3, "kind": "missing_file", "reason": "é.jpg does not exist"
    }  # fmt: skip


def test_a_list_is_continued(tmp_path) -> None:
    path = tmp_path / "invalid_examples.jsonl"
    InvalidExamples(path).add(invalid(3))
    with path.open("a") as file:
        file.write('{"source": "m.jsonl", "li')  # Killed while writing.
    log = InvalidExamples(path)
    log.add(invalid(3))
    log.add(invalid(4))
    assert [entry["line"] for entry in entries(path)] == [3, 4]
    assert log.counts() == {"missing_file": 2}
    path.write_text("{}\n")
    with pytest.raises(ValueError, match=r"invalid_examples\.jsonl, line 1"):
        InvalidExamples(path)


def test_too_many_stop_the_run_but_not_too_early(tmp_path) -> None:
    log = InvalidExamples(tmp_path / "bad.jsonl", limit=0.1, least=20)
    for line in range(10):
        log.add(invalid(line))  # Ten of ten, but only ten were read.
    for _ in range(100):
        log.count_valid()
    with pytest.raises(
        TooManyInvalidExamples, match=r"(?s)12 of 112 examples.*10\.0%.*bad\.jsonl.*m\.jsonl"
    ):
        for line in range(20):
            log.add(invalid(line))
    with pytest.raises(TooManyInvalidExamples, match=r"30 of 100 .*m\.jsonl"):
        InvalidExamples(limit=0.1, least=20).add_scanned("m.jsonl", 100, map(invalid, range(30)))


def test_several_threads_may_write(tmp_path) -> None:
    log = InvalidExamples(tmp_path / "bad.jsonl", limit=1.0)

    def work() -> None:
        for line in range(200):
            log.add(invalid(line))
            log.count_valid()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entries(tmp_path / "bad.jsonl")) == 200
    assert (log.seen, log.invalid) == (1600, 800)


def test_a_fault_becomes_an_invalid_example(tmp_path) -> None:
    with pytest.raises(InvalidExample) as raised, report_as_invalid("m.jsonl", 7):
        raise Fault("no_frames", "nothing to see")
    assert (
        str(pickle.loads(pickle.dumps(raised.value)))
        == "m.jsonl, line 7: no_frames: nothing to see"
    )
    with pytest.raises(OSError, match="disk"), report_as_invalid("m.jsonl", 7):
        raise OSError(errno.EIO, "disk")
    with pytest.raises(KeyError, match=KINDS[0]):
        Fault("ugly", "")


def test_a_list_of_an_earlier_version_is_continued(tmp_path) -> None:
    """Its file was called bad_rows.jsonl, and one kind had another name."""
    old = {"source": "m.jsonl", "line": 3, "kind": "drawn_picture", "reason": "an image"}
    (tmp_path / "bad_rows.1.jsonl").write_text(json.dumps(old) + "\n")
    log = InvalidExamples(tmp_path / "invalid_examples.1.jsonl")
    log.add(invalid(3))
    log.add(invalid(4))
    assert [entry["line"] for entry in entries(tmp_path / "invalid_examples.1.jsonl")] == [3, 4]
    assert log.counts() == {"missing_file": 1, "assistant_image": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["invalid_examples.1.jsonl"]
