"""Claims on parts of a work: one owner, renewed, taken over when the owner is gone or silent."""

import json
import os
import subprocess
import sys

from tuna_jax.data import claims as claiming
from tuna_jax.data.claims import Claims


def test_a_part_has_one_owner_until_it_is_released(tmp_path) -> None:
    mine, other = Claims(tmp_path), Claims(tmp_path)
    assert mine.take("a") and not other.take("a") and other.take("b")
    mine.release("a")
    assert other.take("a")


def test_a_part_of_a_process_that_is_gone_is_taken_over_at_once(tmp_path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    mine = Claims(tmp_path)
    owner = {"place": mine._place, "process": process.pid, "id": "x", "renewed": 0}
    (tmp_path / "a.claim").write_text(json.dumps(owner))
    process.wait()
    assert mine.take("a")
    assert json.loads((tmp_path / "a.claim").read_text())["process"] == os.getpid()


def test_a_silent_owner_on_another_host_loses_its_part(tmp_path, monkeypatch) -> None:
    """Only what the observer sees counts, not the clocks of others; an empty claim is of a writer that was killed."""
    now = [1000.0]
    monkeypatch.setattr(claiming.time, "monotonic", lambda: now[0])
    other = Claims(tmp_path, stale=60.0)
    other._owner["place"] = "elsewhere"
    assert other.take("a")
    (tmp_path / "b.claim").touch()
    mine = Claims(tmp_path, stale=60.0)
    assert not mine.take("a") and not mine.take("b")
    now[0] += 50
    other.renew("a")
    assert not mine.take("a") and not mine.take("b")
    now[0] += 50
    assert not mine.take("a"), "it was renewed a moment ago"
    assert mine.take("b")
    now[0] += 61
    assert mine.take("a")


def test_a_claim_is_renewed_now_and_then(tmp_path, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(claiming.time, "monotonic", lambda: now[0])
    mine = Claims(tmp_path, stale=60.0)
    mine.take("a")
    for _ in range(100):
        now[0] += 1
        mine.renew("a")
    assert json.loads((tmp_path / "a.claim").read_text())["renewed"] in range(8, 12)
    (tmp_path / "a.claim").unlink()  # Another finished the whole work.
    now[0] += 60
    mine.renew("a")
    assert list(tmp_path.iterdir()) == []
