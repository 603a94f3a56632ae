"""Alembic on a database of the test's own."""

from pathlib import Path

import pytest
from alembic.config import Config

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def alembic_config(scratch_database_url: str) -> Config:
    """Alembic's configuration for an empty database."""
    return config_for(scratch_database_url)


def config_for(database_url: str) -> Config:
    """Alembic's configuration for a database."""
    config = Config(PROJECT / "alembic.ini")
    config.attributes["database_url"] = database_url
    return config
