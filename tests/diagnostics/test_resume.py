"""A resumed run that differs in anything fails."""

import pytest

from tuna_jax import train
from tuna_jax.data.loader import BatchIterator
from tuna_jax.diagnostics import resume
from tuna_jax.diagnostics.finding import FAIL, PASS
from tuna_jax.diagnostics.processes import Processes

BEFORE = [{"step": n, "loss": 3.0 / n, "flow_loss": 1.0} for n in range(1, 9)]
AFTER = [{"step": n, "loss": 3.0 / n, "flow_loss": 1.0} for n in range(6, 13)]


def test_equal_losses_pass_and_one_bit_fails():
    finding = resume.compare(BEFORE, AFTER)
    assert finding.result == PASS and "steps 6 to 8" in finding.measured
    other = [*AFTER[:1], AFTER[1] | {"loss": AFTER[1]["loss"] * (1 + 2**-52)}, *AFTER[2:]]
    finding = resume.compare(BEFORE, other)
    assert finding.result == FAIL and "at step 7 loss" in finding.measured


@pytest.mark.parametrize(
    "after",
    [
        [{"step": n, "loss": 3.0 / n, "flow_loss": 1.0} for n in range(1, 13)],  # From nothing.
        AFTER[4:],  # No step is in both.
        AFTER[:-1],  # It did not end.
        [],
    ],
)
def test_a_run_that_did_not_continue_fails(after):
    assert resume.compare(BEFORE, after).result == FAIL


def test_a_data_position_that_is_not_restored_fails(tmp_path, monkeypatch):
    trainer = train.TRAINERS["emoji"]
    set_state = BatchIterator.set_state
    start = {"next_index": 0}
    monkeypatch.setattr(BatchIterator, "set_state", lambda self, state: set_state(self, start))
    logs = resume.by_stopping(trainer, tmp_path, Processes())
    finding = resume.compare(*logs, killed=False)
    assert finding.result == FAIL and "after the restart" in finding.measured


def test_a_run_that_ends_with_an_error_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="tuna_jax.nowhere"):
        resume.by_killing("tuna_jax.nowhere:run", tmp_path)
