"""Migrations of PostgreSQL: one process at a time, never in the way of the running service."""

import asyncio
import inspect
import shutil
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import Script
from sqlalchemy import Index
from sqlalchemy.exc import DBAPIError

from app.models import metadata
from devtools.migration_lint import Revision
from devtools.postgresql_ddl import problems
from migrations import postgresql
from tests.migrations.conftest import PROJECT, Upgrade, config_for, migrate_at_once

TABLE = 'op.create_table("notes", sa.Column("id", sa.Integer(), primary_key=True))'

OTHER_TABLE_THEN_NONSENSE = """
    op.create_table("others", sa.Column("id", sa.Integer(), primary_key=True))
    op.execute("SELECT nonsense")
"""


async def query(url: str, statement: str) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()


def test_two_processes_that_migrate_at_once_take_turns(
    scratch_database_url: str, tmp_path: Path
) -> None:
    migrate_at_once(scratch_database_url, 2, tmp_path)


async def test_a_migration_does_not_wait_long_for_a_table_in_use(
    upgrade: Upgrade, scratch_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert postgresql._LOCK_TIMEOUT_SECONDS < 10
    monkeypatch.setattr(postgresql, "_LOCK_TIMEOUT_SECONDS", 0.1)
    await asyncio.to_thread(upgrade, TABLE)
    connection = await asyncpg.connect(scratch_database_url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE notes")
            with pytest.raises(DBAPIError, match="lock timeout"):
                await asyncio.to_thread(
                    upgrade, TABLE, 'op.add_column("notes", sa.Column("a", sa.Text()))'
                )
    finally:
        await connection.close()


async def test_a_migration_that_fails_keeps_the_ones_before_it(
    upgrade: Upgrade, scratch_database_url: str
) -> None:
    with pytest.raises(DBAPIError, match="nonsense"):
        await asyncio.to_thread(upgrade, TABLE, OTHER_TABLE_THEN_NONSENSE)

    assert await query(scratch_database_url, "SELECT version_num FROM alembic_version") == [("r0",)]
    assert await query(scratch_database_url, "SELECT to_regclass('others')::text") == [(None,)]


async def test_an_index_on_a_table_in_use_is_built_concurrently(
    alembic_config: Config, scratch_database_url: str, tmp_path: Path
) -> None:
    # A copy, because the new revision must not become the service's.
    scripts = shutil.copytree(PROJECT / "migrations", tmp_path / "migrations")
    alembic_config.set_main_option("script_location", str(scripts))
    await asyncio.to_thread(command.upgrade, alembic_config, "head")
    keys = metadata.tables["idempotency_keys"]
    index = Index("ix_new", keys.c.fingerprint)
    try:
        made = await asyncio.to_thread(
            command.revision, alembic_config, "new index", autogenerate=True
        )
    finally:
        keys.indexes.remove(index)
    assert isinstance(made, Script)

    assert not list(problems(Revision(inspect.getsource(made.module))))
    # What an attempt that failed leaves behind.
    await query(scratch_database_url, "CREATE INDEX ix_new ON idempotency_keys (key)")
    await asyncio.to_thread(command.upgrade, alembic_config, "head")
    [(definition,)] = await query(
        scratch_database_url, "SELECT indexdef FROM pg_indexes WHERE indexname = 'ix_new'"
    )
    assert "(fingerprint)" in definition
    await asyncio.to_thread(command.downgrade, alembic_config, "-1")


def test_a_service_with_one_connection_can_be_migrated(scratch_database_url: str) -> None:
    config = config_for(f"{scratch_database_url}?connection_limit=1")
    command.upgrade(config, "head")
    command.check(config)
