"""The kernel that runs here passes; one with a wrong mask, or wrong gradients, fails."""

import jax

from tuna_jax.diagnostics import attention_backends
from tuna_jax.diagnostics.finding import FAIL, PASS
from tuna_jax.models import splash


def test_the_interpreted_kernel_passes():
    finding = attention_backends.attention_backends(None)
    assert finding.result == PASS and "splash (interpreted)" in finding.measured


def test_a_mask_that_shows_one_key_too_many_fails(monkeypatch):
    monkeypatch.setattr(splash, "_before", lambda end, key: key <= end)
    finding = attention_backends.compare("splash", "float32")
    assert finding.result == FAIL and finding.numbers["splash"]["forward"] > 1e-3
    assert "splash" in finding.mend


def test_wrong_gradients_fail_although_the_outputs_are_right(monkeypatch):
    attention = splash.attention

    def wrong(query, *rest):
        # The gradient of the queries is twice too large.
        return attention(2 * query - jax.lax.stop_gradient(query), *rest)

    monkeypatch.setattr(splash, "attention", wrong)
    finding = attention_backends.compare("splash", "float32")
    errors = finding.numbers["splash"]
    assert finding.result == FAIL and errors["forward"] < 1e-5 and errors["gradients"] > 0.5
