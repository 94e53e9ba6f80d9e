"""A resumed run that differs in anything fails."""

import pytest

from tests.diagnostics import fake_training
from tuna_jax.diagnostics import resume
from tuna_jax.diagnostics.finding import FAIL, PASS
from tuna_jax.diagnostics.processes import Processes
from tuna_jax.training import loop

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


@pytest.mark.parametrize(("restores_data", "result"), [(True, PASS), (False, FAIL)])
def test_a_loop_that_forgets_the_position_of_its_data_fails(
    tmp_path, monkeypatch, restores_data, result
):
    monkeypatch.setattr(loop, "train", fake_training.loop_of(restores_data))
    logs = resume.by_stopping(f"{fake_training.__name__}:trainer", tmp_path, Processes())
    finding = resume.compare(*logs, killed=False)
    assert finding.result == result
    expected = "steps 6 to 9" if restores_data else "at step 6 loss is"
    assert expected in finding.measured


def test_a_run_that_ends_with_an_error_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="tuna_jax.nowhere"):
        resume.by_killing("tuna_jax.nowhere:run", tmp_path)
