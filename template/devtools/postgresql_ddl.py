"""Finds migrations that would keep a busy table locked while PostgreSQL works through its rows.

A revision on a table that is known to be small says so:

    BLOCKS = "countries has 200 rows"
"""

import re
from collections.abc import Iterator

from devtools.migration_lint import Operation, Revision, sql_of

_INDEX_SQL = re.compile(r"\bCREATE\s+(UNIQUE\s+)?INDEX\s+(?!CONCURRENTLY\b)", re.IGNORECASE)
_DROP_INDEX_SQL = re.compile(r"\bDROP\s+INDEX\s+(?!CONCURRENTLY\b)", re.IGNORECASE)
_CONSTRAINT_SQL = re.compile(
    r"\bADD\s+(CONSTRAINT\s+\S+\s+)?(FOREIGN\s+KEY|CHECK)\b(?!.*\bNOT\s+VALID\b)",
    re.IGNORECASE | re.DOTALL,
)
_UNIQUE = ("create_unique_constraint", "create_primary_key", "create_exclude_constraint")
_CHECKED = ("create_foreign_key", "create_check_constraint")


def problems(revision: Revision) -> Iterator[str]:
    """Yield a line for each operation that blocks the readers or writers of a table in use."""
    if "BLOCKS" in revision.acknowledged:
        return
    for operation in revision.on_used_tables:
        if advice := _advice(operation):
            yield f'{operation.line}: {advice}; if the table is small, say so: BLOCKS = "..."'


def _advice(operation: Operation) -> str | None:
    return _index_advice(operation) or _constraint_advice(operation)


def _index_advice(operation: Operation) -> str | None:
    is_concurrent = operation.is_true("postgresql_concurrently")
    sql = sql_of(operation)
    if operation.name == "create_index" and not is_concurrent:
        return (
            "an index blocks writes while it is built; pass postgresql_concurrently=True, inside "
            "`with op.get_context().autocommit_block():`"
        )
    if operation.name == "drop_index" and not is_concurrent:
        return (
            "dropping an index waits for every reader and holds up those that come after; pass "
            "postgresql_concurrently=True, inside `with op.get_context().autocommit_block():`"
        )
    if _INDEX_SQL.search(sql):
        return "an index blocks writes while it is built; write CREATE INDEX CONCURRENTLY"
    if _DROP_INDEX_SQL.search(sql):
        return "dropping an index holds up readers; write DROP INDEX CONCURRENTLY"
    return None


def _constraint_advice(operation: Operation) -> str | None:
    if operation.name in _UNIQUE:
        return (
            "a unique constraint locks the table while its index is built; create a unique index "
            "concurrently, then ALTER TABLE ... ADD CONSTRAINT ... USING INDEX"
        )
    if operation.name in _CHECKED and not operation.is_true("postgresql_not_valid"):
        return (
            "a constraint locks the table while all rows are checked; pass "
            "postgresql_not_valid=True and VALIDATE CONSTRAINT in the next revision"
        )
    if _CONSTRAINT_SQL.search(sql_of(operation)):
        return (
            "a constraint locks the table while all rows are checked; write NOT VALID and "
            "VALIDATE CONSTRAINT in the next revision"
        )
    return None
