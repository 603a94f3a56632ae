"""SQLite's rules for migrations: all or nothing, and tables are copied to be altered."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from alembic.ddl import sqlite
from alembic.ddl._autogen import ComparisonResult
from alembic.operations import ops
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import CheckConstraint, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import ConnectionPoolEntry

from app.core.sqlite import DatabaseSettings, create_engine

# A text, a quoted name, a name or number, or a sign.
_WORD = re.compile(r"""'(?:[^']|'')*'|"[^"]*"|\w+|[^\w\s]""")
# How long a second process waits for the first one's migrations.
_LOCK_TIMEOUT_SECONDS = 60


@asynccontextmanager
async def connect(settings: DatabaseSettings) -> AsyncIterator[AsyncConnection]:
    """Connect for migrations; its transactions take the write lock from the start."""
    settings = settings.model_copy(update={"DB_LOCK_TIMEOUT_SECONDS": _LOCK_TIMEOUT_SECONDS})
    engine = create_engine(settings)
    event.listen(engine.sync_engine, "connect", _suspend_foreign_keys)
    try:
        async with engine.connect() as connection:
            yield connection
    finally:
        await engine.dispose()


def _suspend_foreign_keys(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    # Altering a table drops the old copy, which would delete, by ON DELETE CASCADE, the rows that
    # refer to it (https://www.sqlite.org/lang_altertable.html#otheralter).
    cursor.execute("PRAGMA foreign_keys = OFF")
    cursor.close()


class SQLiteImpl(sqlite.SQLiteImpl):
    """Sees that the expression of a CHECK constraint has changed."""

    __dialect__ = "sqlite"

    def compare_check_constraint(
        self, metadata_constraint: CheckConstraint, reflected_constraint: CheckConstraint
    ) -> ComparisonResult:
        """Compare the texts, which SQLite keeps as they were given, but for spaces and case."""
        compiler = self.dialect.ddl_compiler(self.dialect, None).sql_compiler  # type: ignore[arg-type]
        wanted, found = (
            compiler.process(constraint.sqltext, include_table=False, literal_binds=True)
            for constraint in (metadata_constraint, reflected_constraint)
        )
        if _words(wanted) == _words(found):
            return ComparisonResult.Equal()
        return ComparisonResult.Different(f"{found} becomes {wanted}")


def _words(expression: str) -> list[str]:
    return [
        word if word.startswith("'") else word.strip('"').lower()
        for word in _WORD.findall(expression)
    ]


def prepare(_: ops.MigrationScript) -> None:
    """Leave a revision as it is: whatever it does, nobody else writes meanwhile."""


def _check_foreign_keys(ctx: MigrationContext, **_: Any) -> None:
    if ctx.connection is None:
        return
    broken = ctx.connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if broken:
        message = f"the migration leaves rows that refer to nothing: {broken[:10]}"
        raise CommandError(message)


OPTIONS: Final[dict[str, Any]] = {
    # Alembic distrusts the driver; app/core/sqlite.py opens the transactions itself.
    "transactional_ddl": True,
    "render_as_batch": True,
    "on_version_apply": _check_foreign_keys,
}
"""What Alembic is configured with for this database."""
