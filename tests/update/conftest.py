"""What the tests of updates share."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml


@pytest.fixture
def stored_answers() -> Callable[[Path], dict[str, object]]:
    """Reads the answers that a service has stored."""
    return lambda service: dict(yaml.safe_load((service / ".copier-answers.yml").read_text()))
