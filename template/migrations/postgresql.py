"""PostgreSQL's rules for migrations: one at a time, never in the way of the running service."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import render_op_text, renderers
from alembic.operations import ops
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.core.postgresql import DatabaseSettings, create_engine

# A statement that waits for a lock makes every later query on that table wait behind it. Better
# to fail: the deployment can be repeated.
_LOCK_TIMEOUT_SECONDS = 5
_POLL_SECONDS = 0.5
# Any number will do that nobody else uses as an advisory lock in this database. It is held by a
# transaction, because a pooler may give the session, and what it holds, to somebody else.
_TAKE_TURN = text("SELECT pg_try_advisory_xact_lock(6502130187462315)")

logger = logging.getLogger("alembic.env")


@asynccontextmanager
async def connect(settings: DatabaseSettings) -> AsyncIterator[AsyncConnection]:
    """Connect for migrations, when no other process is migrating this database."""
    settings = settings.model_copy(
        update={
            "DB_APPLICATION_NAME": "migrations",
            "DB_LOCK_TIMEOUT_SECONDS": _LOCK_TIMEOUT_SECONDS,
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


class ConcurrentIndexOps(ops.MigrateOperation):
    """Indexes to build without blocking writes, which cannot be done inside a transaction."""

    def __init__(self, indexes: Sequence[ops.CreateIndexOp]) -> None:
        self.indexes = indexes


@renderers.dispatch_for(ConcurrentIndexOps)
def _render(autogenerate: AutogenContext, block: ConcurrentIndexOps) -> list[str]:
    lines = [
        "with op.get_context().autocommit_block():",
        "# An attempt that failed has left an unusable index behind.",
    ]
    for index in block.indexes:
        leftover = index.reverse()
        leftover.if_exists = True
        lines.append(render_op_text(autogenerate, leftover))
    lines.append("# Waits for older transactions, but nobody waits for it.")
    lines.append('op.execute("SET lock_timeout = 0")')
    lines += [render_op_text(autogenerate, index) for index in block.indexes]
    # An empty line ends the block.
    return [*lines, 'op.execute("RESET lock_timeout")', ""]


def _build_indexes_concurrently(
    _context: MigrationContext,
    _revision: str | Iterable[str | None] | Iterable[str],
    directives: list[ops.MigrationScript],
) -> None:
    for script in directives:
        for operations in (script.upgrade_ops, script.downgrade_ops):
            if operations is not None:
                _move_indexes(operations)


def _move_indexes(operations: ops.OpContainer) -> None:
    # Nobody reads or writes a table yet that the same revision creates.
    created = {op.table_name for op in operations.ops if isinstance(op, ops.CreateTableOp)}
    indexes: list[ops.CreateIndexOp] = []
    for table in operations.ops:
        if isinstance(table, ops.ModifyTableOps) and table.table_name not in created:
            for op in list(table.ops):
                if isinstance(op, ops.CreateIndexOp):
                    op.kw["postgresql_concurrently"] = True
                    table.ops.remove(op)
                    indexes.append(op)
    if indexes:
        operations.ops.append(ConcurrentIndexOps(indexes))


OPTIONS: Final[dict[str, Any]] = {
    # A long series of revisions gives its locks back after each.
    "transaction_per_migration": True,
    "process_revision_directives": _build_indexes_concurrently,
}
"""What Alembic is configured with for this database."""
