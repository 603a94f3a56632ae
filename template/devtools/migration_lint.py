"""Finds migrations that would break the release which still runs while they are applied.

A deployment migrates first and replaces the processes afterwards, so for a while the old code
works on the new tables. Hence expand and contract: a release adds what it needs, and what nobody
uses any more is dropped in a later release. A revision that contracts says why it may:

    CONTRACT = "books.note: unused since revision 3f2a"
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CONTRACTING_SQL = re.compile(
    r"\b(DROP\s+(TABLE|COLUMN|SCHEMA|VIEW)|RENAME\s+(TO|COLUMN)|TRUNCATE"
    r"|ALTER\s+COLUMN\s+\S+\s+(SET\s+DATA\s+)?TYPE|SET\s+NOT\s+NULL)\b",
    re.IGNORECASE,
)
_CONTRACTING = {
    "drop_table": "drops a table",
    "drop_column": "drops a column",
    "rename_table": "renames a table",
}
_CONTRACTING_CHANGES = {
    "new_column_name": "renames a column",
    "type_": "changes a column's type",
    "nullable": "makes a column NOT NULL",
}
_CONTRACT_ADVICE = (
    'which the release that still runs may use; if it does not, say why: CONTRACT = "..."'
)


@dataclass(frozen=True)
class Operation:
    """A call such as `op.add_column("books", ...)` or the same on a `batch_op`."""

    name: str
    table: str | None
    call: ast.Call

    @property
    def line(self) -> int:
        """Where it begins."""
        return self.call.lineno

    def argument(self, name: str) -> ast.expr | None:
        """A keyword argument, if it is there."""
        return next((item.value for item in self.call.keywords if item.arg == name), None)

    def is_true(self, name: str) -> bool:
        """Whether a keyword argument is literally `True`."""
        value = self.argument(name)
        return isinstance(value, ast.Constant) and value.value is True


class Revision:
    """What a revision file does in `upgrade`."""

    def __init__(self, source: str) -> None:
        module = ast.parse(source)
        self.acknowledged = {
            target.id
            for statement in module.body
            if isinstance(statement, ast.Assign) and _text(statement.value)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
        self.operations = [
            operation
            for statement in module.body
            if isinstance(statement, ast.FunctionDef) and statement.name == "upgrade"
            for operation in _operations(statement)
        ]
        created = {op.table for op in self.operations if op.name == "create_table"}
        # Nobody uses a table yet that the same revision creates.
        self.on_used_tables = [
            op for op in self.operations if op.table is None or op.table not in created
        ]


def problems(revision: Revision) -> Iterator[str]:
    """Yield a line for each operation of a revision that the running release may not survive."""
    for operation in revision.on_used_tables:
        if operation.name == "add_column" and _must_be_filled(operation):
            yield (
                f"{operation.line}: adds a NOT NULL column without server_default, which existing "
                "rows cannot have and the running release does not write"
            )
        if "CONTRACT" not in revision.acknowledged:
            for what in _contractions(operation):
                yield f"{operation.line}: {what}, {_CONTRACT_ADVICE}"


def revision_files(versions: Path) -> list[Path]:
    """The revisions in a folder, sorted by name."""
    return sorted(path for path in versions.glob("*.py") if path.name != "__init__.py")


def sql_of(operation: Operation) -> str:
    """The literal SQL that an `op.execute` runs; nothing for other operations."""
    if operation.name != "execute":
        return ""
    texts = [
        text
        for node in ast.walk(operation.call)
        if isinstance(node, ast.expr) and (text := _text(node))
    ]
    return " ".join(texts)


def _contractions(operation: Operation) -> Iterator[str]:
    if what := _CONTRACTING.get(operation.name):
        yield what
    if operation.name == "alter_column":
        for argument, what in _CONTRACTING_CHANGES.items():
            value = operation.argument(argument)
            loosens = isinstance(value, ast.Constant) and value.value is True
            if value is not None and not loosens:
                yield what
    if match := _CONTRACTING_SQL.search(sql_of(operation)):
        yield f"runs {match.group(0).upper()}"


def _must_be_filled(operation: Operation) -> bool:
    columns = [
        node
        for node in ast.walk(operation.call)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Column")
    ]
    keywords = {item.arg: item.value for column in columns for item in column.keywords}
    nullable = keywords.get("nullable")
    return (
        isinstance(nullable, ast.Constant)
        and nullable.value is False
        and not keywords.keys() & {"server_default", "primary_key"}
    )


def _operations(function: ast.FunctionDef) -> Iterator[Operation]:
    batches: dict[str, str | None] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.With):
            for item in node.items:
                call, variable = item.context_expr, item.optional_vars
                if isinstance(call, ast.Call) and isinstance(variable, ast.Name):
                    batches[variable.id] = _argument(call, 0)
    for node in ast.walk(function):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        receiver = node.func.value
        if isinstance(receiver, ast.Name) and receiver.id in ("op", *batches):
            name = node.func.attr
            table = batches[receiver.id] if receiver.id in batches else _table(name, node)
            yield Operation(name, table, node)


def _table(operation: str, call: ast.Call) -> str | None:
    for keyword in call.keywords:
        if keyword.arg in ("table_name", "source_table"):
            return _text(keyword.value)
    # The first argument of these is the name of the index or constraint.
    is_named = operation.startswith("create_") or operation in ("drop_index", "drop_constraint")
    return _argument(call, 1 if is_named and operation != "create_table" else 0)


def _argument(call: ast.Call, position: int) -> str | None:
    return _text(call.args[position]) if len(call.args) > position else None


def _text(value: ast.expr) -> str | None:
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return value.value
    return None
