"""The rules for migrations, each against a revision that breaks it."""

import pytest

from devtools.migration_lint import Revision, problems


def lint(*lines: str, header: str = "") -> list[str]:
    """The problems of a revision whose `upgrade` has these lines."""
    body = "".join(f"    {line}\n" for line in lines)
    source = f"{header}\ndef upgrade():\n{body}\ndef downgrade():\n    op.drop_table('other')\n"
    return list(problems(Revision(source)))


@pytest.mark.parametrize(
    ("operation", "complaint"),
    [
        ("op.drop_table('books')", "drops a table"),
        ("op.drop_column('books', 'note')", "drops a column"),
        ("op.rename_table('books', 'purchases')", "renames a table"),
        ("op.alter_column('books', 'note', new_column_name='memo')", "renames a column"),
        ("op.alter_column('books', 'note', type_=sa.Text())", "changes a column's type"),
        ("op.alter_column('books', 'note', nullable=False)", "makes a column NOT NULL"),
        ("op.execute('drop   table books')", "DROP   TABLE"),
        ("op.execute(sa.text('ALTER TABLE books DROP COLUMN note'))", "DROP COLUMN"),
        ("op.execute('ALTER TABLE a ALTER COLUMN b TYPE bigint')", "ALTER COLUMN B TYPE"),
    ],
)
def test_what_the_running_release_may_use_is_not_taken_away(operation: str, complaint: str) -> None:
    [problem] = lint("op.create_table('new')", operation)

    assert complaint in problem
    assert problem.startswith("4: ")


def test_a_batch_is_looked_into() -> None:
    batch = "with op.batch_alter_table('books') as batch_op:"

    assert len(lint(batch, "    batch_op.drop_column('note')")) == 1


def test_a_reason_allows_it() -> None:
    operation = "op.drop_column('books', 'note')"

    assert not lint(operation, header="CONTRACT = 'books.note: unused since revision 3f2a'")
    assert lint(operation, header="CONTRACT = ''")


@pytest.mark.parametrize(
    "operation",
    [
        "op.add_column('books', sa.Column('note', sa.Text(), nullable=True))",
        "op.add_column('books', sa.Column('n', sa.Text(), server_default='', nullable=False))",
        "op.alter_column('books', 'note', nullable=True)",
        "op.execute('UPDATE books SET note = NULL')",
        "op.drop_index('ix_books_note', table_name='books')",
    ],
)
def test_what_only_adds_or_loosens_is_allowed(operation: str) -> None:
    assert not lint(operation)


def test_a_new_column_must_be_fillable() -> None:
    column = "sa.Column('note', sa.Text(), nullable=False)"
    batch = "with op.batch_alter_table('books') as batch_op:"

    assert "server_default" in lint(f"op.add_column('books', {column})")[0]
    assert "server_default" in lint(batch, f"    batch_op.add_column({column})")[0]


def test_anything_may_be_done_to_a_table_of_the_same_revision() -> None:
    assert not lint("op.create_table('books')", "op.drop_column('books', 'note')")
