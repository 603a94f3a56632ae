"""The rules against blocking DDL: revisions that break them, and the team's history."""

from pathlib import Path

import pytest

from devtools.migration_lint import Revision, revision_files
from devtools.postgresql_ddl import problems
from tests.migrations.conftest import PROJECT


def lint(*lines: str, header: str = "") -> list[str]:
    """The problems of a revision whose `upgrade` has these lines."""
    body = "".join(f"    {line}\n" for line in lines)
    return list(problems(Revision(f"{header}\ndef upgrade():\n{body}")))


@pytest.mark.parametrize(
    ("operation", "advice"),
    [
        ("op.create_index('ix', 'books', ['note'])", "postgresql_concurrently"),
        ("op.create_index(op.f('ix'), 'books', ['note'], unique=True)", "postgresql_concurrently"),
        ("op.create_index('ix', table_name='books', columns=['a'])", "postgresql_concurrently"),
        ("op.execute('CREATE UNIQUE INDEX ix ON books (note)')", "CONCURRENTLY"),
        ("op.drop_index('ix', table_name='books')", "postgresql_concurrently"),
        ("op.execute('DROP INDEX ix')", "CONCURRENTLY"),
        (
            "op.execute('ALTER TABLE books ADD CONSTRAINT fk FOREIGN KEY (a) REFERENCES b')",
            "NOT VALID",
        ),
        ("op.create_unique_constraint('uq', 'books', ['note'])", "USING INDEX"),
        ("op.create_foreign_key('fk', 'books', 'users', ['a'], ['b'])", "not_valid"),
        ("op.create_check_constraint('ck', 'books', 'a > 0')", "not_valid"),
    ],
)
def test_a_table_in_use_is_not_blocked(operation: str, advice: str) -> None:
    [problem] = lint(operation)

    assert advice in problem
    assert not lint(operation, header="BLOCKS = 'books has 200 rows'")
    assert not lint("op.create_table('books')", operation) or "execute" in operation


@pytest.mark.parametrize(
    "operation",
    [
        "op.create_index('ix', 'books', ['note'], postgresql_concurrently=True)",
        "op.execute('CREATE INDEX CONCURRENTLY ix ON books (note)')",
        "op.drop_index('ix', table_name='books', postgresql_concurrently=True)",
        "op.execute('ALTER TABLE books ADD CHECK (a > 0) NOT VALID')",
        "op.create_check_constraint('ck', 'books', 'a > 0', postgresql_not_valid=True)",
    ],
)
def test_what_does_not_block_is_allowed(operation: str) -> None:
    assert not lint(operation)


@pytest.mark.parametrize(
    "path", revision_files(PROJECT / "migrations" / "versions"), ids=lambda path: path.stem
)
def test_no_migration_blocks_a_table_in_use(path: Path) -> None:
    found = [f"{path.name}:{problem}" for problem in problems(Revision(path.read_text()))]

    assert not found, "\n".join(found)
