"""PostgreSQL's rules for migrations: one at a time, never in the way of the running service."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, cast

from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import render_op_text, renderers
from alembic.ddl import postgresql
from alembic.ddl._autogen import ComparisonResult
from alembic.operations import ops
from sqlalchemy import CheckConstraint, Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.core.postgresql import DatabaseSettings, create_engine

# A statement that waits for a lock makes every later query on that table wait behind it. Better
# to fail: the deployment can be repeated.
_LOCK_TIMEOUT_SECONDS = 5
_POLL_SECONDS = 0.5
# Any number will do that nobody else uses as an advisory lock in this database. It is held by a
# transaction, because a pooler may give the session, and what it holds, to somebody else.
_TAKE_TURN = text("SELECT pg_try_advisory_xact_lock(6502130187462315)")

# Of a table's constraint by name, or of its only one; it may not have been held against all rows.
_DEFINITION = """
    SELECT regexp_replace(pg_get_constraintdef(oid), ' NOT VALID$', '') FROM pg_constraint
    WHERE conrelid = CAST(CAST(:table AS text) AS regclass) AND contype = 'c'
    AND conname = coalesce(:name, conname)
"""

logger = logging.getLogger("alembic.env")


@asynccontextmanager
async def connect(settings: DatabaseSettings) -> AsyncIterator[AsyncConnection]:
    """Connect for migrations, when no other process is migrating this database."""
    settings = settings.model_copy(
        update={
            "DB_APPLICATION_NAME": "migrations",
            "DB_LOCK_TIMEOUT_SECONDS": _LOCK_TIMEOUT_SECONDS,
            # However few the service has.
            "DB_POOL_SIZE": 2,
            # Filling a column or building an index takes as long as it takes.
            "DB_STATEMENT_TIMEOUT_SECONDS": 0,
            "DB_IDLE_IN_TRANSACTION_TIMEOUT_SECONDS": 0,
        }
    )
    engine = create_engine(settings)
    try:
        # Two connections, because the turn lasts longer than a migration's own transaction.
        async with engine.connect() as turn, engine.connect() as connection:
            await _wait_for(turn)
            yield connection
    finally:
        await engine.dispose()


async def _wait_for(turn: AsyncConnection) -> None:
    waiting = False
    # Asked again and again, because CREATE INDEX CONCURRENTLY would wait for the end of a
    # statement that waits, and neither would ever finish.
    while not await turn.scalar(_TAKE_TURN):
        await turn.rollback()
        if not waiting:
            logger.info("Waiting for another process to finish its migrations")
            waiting = True
        await asyncio.sleep(_POLL_SECONDS)
    # However long the migrations take. And for an idle transaction CREATE INDEX CONCURRENTLY does
    # not wait, once a statement without a snapshot has taken the place of the query's.
    await turn.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))


class PostgresqlImpl(postgresql.PostgresqlImpl):
    """Sees that the expression of a CHECK constraint has changed."""

    __dialect__ = "postgresql"

    def compare_check_constraint(
        self, metadata_constraint: CheckConstraint, reflected_constraint: CheckConstraint
    ) -> ComparisonResult:
        """Compare what Postgres makes of both, as it keeps expressions in words of its own."""
        connection = cast(Connection, self.connection)
        compiler = self.dialect.ddl_compiler(self.dialect, None).sql_compiler  # type: ignore[arg-type]
        wanted = compiler.process(
            metadata_constraint.sqltext, include_table=False, literal_binds=True
        )
        table = self.dialect.identifier_preparer.format_table(metadata_constraint.table)
        attempt = connection.begin_nested()
        try:
            connection.exec_driver_sql(
                f"CREATE TEMPORARY TABLE alembic_check (LIKE {table}, CHECK ({wanted}))"
            )
            find = text(_DEFINITION)
            made, found = (
                connection.scalar(find, {"table": name, "name": constraint})
                for name, constraint in (
                    ("alembic_check", None),
                    (table, reflected_constraint.name),
                )
            )
        except DBAPIError:
            # It is about a column that is not there yet.
            return ComparisonResult.Different("its columns have changed")
        finally:
            attempt.rollback()
        if made == found:
            return ComparisonResult.Equal()
        return ComparisonResult.Different(f"{found} becomes {made}")


class ConcurrentIndexOps(ops.MigrateOperation):
    """Indexes to build without blocking writes, which cannot be done inside a transaction."""

    def __init__(self, indexes: Sequence[ops.CreateIndexOp]) -> None:
        # As containers of operations call them.
        self.ops = indexes


class ValidateOps(ops.MigrateOperation):
    """CHECK constraints to hold against the rows that are there, without blocking anybody."""

    def __init__(self, checks: Sequence[ops.CreateCheckConstraintOp]) -> None:
        self.ops = checks


@renderers.dispatch_for(ConcurrentIndexOps)
def _render_indexes(autogenerate: AutogenContext, block: ConcurrentIndexOps) -> list[str]:
    lines = [
        "with op.get_context().autocommit_block():",
        "# An attempt that failed has left an unusable index behind.",
    ]
    for index in block.ops:
        leftover = index.reverse()
        leftover.if_exists = True
        lines.append(render_op_text(autogenerate, leftover))
    lines.append("# Waits for older transactions, but nobody waits for it.")
    lines.append('op.execute("SET lock_timeout = 0")')
    lines += [render_op_text(autogenerate, index) for index in block.ops]
    # An empty line ends the block.
    return [*lines, 'op.execute("RESET lock_timeout")', ""]


@renderers.dispatch_for(ValidateOps)
def _render_validation(autogenerate: AutogenContext, block: ValidateOps) -> list[str]:
    lines = [
        "with op.get_context().autocommit_block():",
        "# Reads every row, but nobody waits for it.",
    ]
    quote = autogenerate.dialect.identifier_preparer.quote
    for check in block.ops:
        name = check.to_constraint().name
        statement = f"ALTER TABLE {quote(check.table_name)} VALIDATE CONSTRAINT {quote(str(name))}"
        lines.append(f"op.execute({statement!r})")
    return [*lines, ""]


def prepare(script: ops.MigrationScript) -> None:
    """Make a revision do nothing that keeps others from a table in use for long."""
    for operations in (script.upgrade_ops, script.downgrade_ops):
        if operations is not None:
            _move_what_takes_long(operations)


def _move_what_takes_long(operations: ops.OpContainer) -> None:
    # Nobody reads or writes a table yet that the same revision creates.
    created = {op.table_name for op in operations.ops if isinstance(op, ops.CreateTableOp)}
    indexes: list[ops.CreateIndexOp] = []
    checks: list[ops.CreateCheckConstraintOp] = []
    for table in operations.ops:
        if isinstance(table, ops.ModifyTableOps) and table.table_name not in created:
            for op in list(table.ops):
                if isinstance(op, ops.CreateIndexOp):
                    op.kw["postgresql_concurrently"] = True
                    table.ops.remove(op)
                    indexes.append(op)
                if isinstance(op, ops.CreateCheckConstraintOp):
                    op.kw["postgresql_not_valid"] = True
                    checks.append(op)
                    _drop_before(table.ops, op)
    if checks:
        operations.ops.append(ValidateOps(checks))
    if indexes:
        operations.ops.append(ConcurrentIndexOps(indexes))


def _drop_before(
    operations: list[ops.MigrateOperation], check: ops.CreateCheckConstraintOp
) -> None:
    # An attempt whose validation failed has left it behind.
    name, table = check.constraint_name, check.table_name
    drop = ops.DropConstraintOp(name, table, type_="check", schema=check.schema, if_exists=True)
    dropped = [op.constraint_name for op in operations if isinstance(op, ops.DropConstraintOp)]
    if name not in dropped:
        operations.insert(operations.index(check), drop)


OPTIONS: Final[dict[str, Any]] = {
    # A long series of revisions gives its locks back after each.
    "transaction_per_migration": True,
}
"""What Alembic is configured with for this database."""
