"""Fixtures of the launchers' tests."""

import pytest

from tests.fixtures import fake_cloud


@pytest.fixture
def fake(tmp_path):
    """A folder with a gcloud, kubectl and docker that record their calls."""
    fake_cloud.install(tmp_path)
    return tmp_path
