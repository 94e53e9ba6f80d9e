"""One judge for all tests: its galleries take seconds to build."""

import pytest

from tuna_jax.evaluation.judges import ObjectJudge


@pytest.fixture(scope="session")
def judge():
    return ObjectJudge()
