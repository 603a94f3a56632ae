"""Alembic on a database of the test's own."""

import os
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

from tests.fixtures.process import ModuleProcess

PROJECT = Path(__file__).parents[2]
_REVISION = """
import sqlalchemy as sa
from alembic import op

revision = "r{number}"
down_revision = {previous}


def upgrade():
{body}
"""

Upgrade = Callable[..., None]


@pytest.fixture
def alembic_config(scratch_database_url: str) -> Config:
    """Alembic's configuration for an empty database."""
    return config_for(scratch_database_url)


def config_for(database_url: str) -> Config:
    """Alembic's configuration for a database."""
    config = Config(PROJECT / "alembic.ini")
    config.attributes["database_url"] = database_url
    return config


def migrate_at_once(database_url: str, processes: int, folder: Path) -> None:
    """Have so many processes migrate one database, each as at a deployment; none may fail."""
    environment = {**os.environ, "DATABASE_URL": database_url}
    outputs = [folder / f"output-{number}" for number in range(processes)]
    running = [
        ModuleProcess(
            "alembic", ["upgrade", "head"], folder=PROJECT, environment=environment, output=output
        )
        for output in outputs
    ]
    for process, output in zip(running, outputs, strict=True):
        assert process.wait() == 0, output.read_text()


@pytest.fixture
def upgrade(alembic_config: Config, tmp_path: Path) -> Upgrade:
    """Run revisions of the test's own: `upgrade("op.create_table(...)", "op.execute(...)")`."""

    def run(*bodies: str) -> None:
        scripts = tmp_path / "migrations"
        shutil.rmtree(scripts, ignore_errors=True)
        shutil.copytree(
            PROJECT / "migrations", scripts, ignore=lambda _, names: {"versions"} & set(names)
        )
        (scripts / "versions").mkdir()
        for number, body in enumerate(bodies):
            revision = _REVISION.format(
                number=number,
                previous=repr(f"r{number - 1}") if number else None,
                body=textwrap.indent(textwrap.dedent(body), "    "),
            )
            (scripts / "versions" / f"r{number}.py").write_text(revision)
        alembic_config.set_main_option("script_location", str(scripts))
        command.upgrade(alembic_config, "head")

    return run
