"""Migrations of SQLite: all or nothing, one at a time, without lost rows."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from alembic.util import CommandError

from tests.migrations.conftest import Upgrade, migrate_at_once


@contextmanager
def connected(url: str) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        yield connection


TABLES = """
    op.create_table("parents", sa.Column("id", sa.Integer(), primary_key=True))
    op.create_table(
        "children",
        sa.Column("id", sa.Integer(), sa.ForeignKey("parents.id", ondelete="CASCADE")),
    )
    op.execute("INSERT INTO parents VALUES (1)")
    op.execute("INSERT INTO children VALUES (1)")
"""
ALTERED = """
    with op.batch_alter_table("parents", recreate="always") as batch_op:
        batch_op.add_column(sa.Column("name", sa.Text()))
"""


def test_altering_a_table_keeps_the_rows_that_refer_to_it(
    upgrade: Upgrade, scratch_database_url: str
) -> None:
    upgrade(TABLES, ALTERED)

    with connected(scratch_database_url) as connection:
        assert connection.execute("SELECT * FROM children").fetchall() == [(1,)]


def test_a_migration_that_fails_changes_nothing(
    upgrade: Upgrade, scratch_database_url: str
) -> None:
    with pytest.raises(CommandError, match="refer to nothing"):
        upgrade(TABLES, 'op.execute("DELETE FROM parents")')

    with connected(scratch_database_url) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == []


def test_two_processes_that_migrate_at_once_take_turns(
    scratch_database_url: str, tmp_path: Path
) -> None:
    migrate_at_once(scratch_database_url, 2, tmp_path)
