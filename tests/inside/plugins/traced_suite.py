"""Has the service's own tests record traces; test_tracing.py loads it as a plugin of pytest."""

import json
import os

import pytest


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """Set what the service's conftest.py has just taken out of the environment."""
    os.environ.update(json.loads(os.environ["TRACED_ENVIRONMENT"]))
