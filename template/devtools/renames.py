"""Modules and settings that a release has renamed, in the lines that a team wrote.

The template's `renames.toml` is data: no code of the template runs in an update.
"""

import ast
import io
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from devtools.repository import UpdateError
from devtools.template_source import version


@dataclass
class Renames:
    """New names by old ones: of modules (`app.core.threads`) and settings (`DRAIN_SECONDS`)."""

    modules: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str, current: str) -> "Renames":
        """Read the renames of all releases after `current`, oldest first.

        Args:
            text: TOML with a table for each release, such as `["2.0.0".modules]`.
            current: The release that a service comes from.

        Raises:
            UpdateError: if it is something else.
        """
        renames = cls()
        try:
            releases = {name: dict(table) for name, table in tomllib.loads(text).items()}
        except (TypeError, ValueError) as error:
            message = f"The template's renames.toml cannot be read: {error}"
            raise UpdateError(message) from None
        here = version(current) or (0, 0, 0)
        for name in sorted(releases, key=lambda name: version(name) or here):
            if (version(name) or here) > here:
                for kind in ("modules", "settings"):
                    table = releases[name].get(kind, {})
                    if not isinstance(table, dict) or not all(map(_is_text, table.values())):
                        message = f"The template's renames.toml has no names in {name}.{kind}."
                        raise UpdateError(message)
                    _go_on(getattr(renames, kind), table)
        return renames

    def apply(self, path: str, text: str, template: str) -> tuple[str, list[tuple[int, str]]]:
        """Rename in the lines of a file that are not the template's.

        Args:
            path: Which file; Python, TOML and `.env.example` can hold such names.
            text: What it holds.
            template: What the template renders for it; nothing for a file of the team's own.

        Returns:
            The text, and each new line with the number of the one that it replaces.
        """
        if not (path.endswith((".py", ".toml")) or PurePosixPath(path).name == ".env.example"):
            return text, []
        theirs = {line.rstrip("\r\n") for line in _lines(template)}
        lines = _lines(text)
        changed = dict(self._imports(text, theirs)) if path.endswith(".py") else {}
        for number, line in enumerate(lines, 1):
            if line.rstrip("\r\n") not in theirs and number not in changed:
                new = self._names(line)
                if new != line:
                    changed[number] = new
        result = "".join(changed.get(number, line) for number, line in enumerate(lines, 1))
        told = [(number, each) for number, new in sorted(changed.items()) for each in _lines(new)]
        return result, told

    def _names(self, line: str) -> str:
        # All at once: a new name may be another one's old one.
        for before, separator, names in (
            (r"(?<![\w.])", ".", self.modules),
            (r"(?<![\w./])", "/", self.modules),
            (r"(?<!\w)", ".", self.settings),
        ):
            new = {k.replace(".", separator): v.replace(".", separator) for k, v in names.items()}
            either = "|".join(map(re.escape, sorted(new, key=len, reverse=True)))
            if new:
                parts = re.split(rf"{before}({either})(?!\w)", line)
                # Every second part is a name.
                parts[1::2] = [new[part] for part in parts[1::2]]
                line = "".join(parts)
        return line

    def _imports(self, text: str, theirs: set[str]) -> Iterator[tuple[int, str]]:
        """The lines of `from package import module`, where modules of the package have moved."""
        lines = _lines(text)
        try:
            statements = list(ast.walk(ast.parse(text)))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            # Such as a file with a conflict in it.
            return
        for statement in statements:
            if not isinstance(statement, ast.ImportFrom) or statement.level:
                continue
            first, last = statement.lineno, statement.end_lineno or statement.lineno
            own = lines[first - 1 : last]
            moved = [f"{statement.module}.{each.name}" for each in statement.names]
            if not self.modules.keys() & set(moved) or theirs.issuperset(
                line.rstrip("\r\n") for line in own
            ):
                continue
            # Columns are counted in bytes.
            indent = os.fsdecode(os.fsencode(own[0])[: statement.col_offset])
            rest = os.fsdecode(os.fsencode(own[-1])[statement.end_col_offset :])
            is_one_line = first == last and rest.lstrip().startswith("#")
            if indent.strip() or (rest.strip() and not is_one_line) or "#" in "".join(own[:-1]):
                # It shares its lines with something else; that it needs a repair is told.
                continue
            end = "\r\n" if own[0].endswith("\r\n") else "\n"
            new = self._statement(statement, indent).split("\n")
            new[0] += rest.rstrip()
            yield first, end.join(new)
            yield from ((number, "") for number in range(first + 1, last + 1))

    def _statement(self, statement: ast.ImportFrom, indent: str) -> str:
        groups: dict[str, list[str]] = {}
        for alias in statement.names:
            old = f"{statement.module}.{alias.name}"
            package, _, name = self.modules.get(old, old).rpartition(".")
            local = alias.asname or alias.name
            groups.setdefault(self._names(package), []).append(
                name if name == local else f"{name} as {local}"
            )
        return "".join(
            f"{indent}from {package} import {', '.join(names)}\n"
            for package, names in sorted(groups.items())
        )


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _lines(text: str) -> list[str]:
    """The lines as Python counts them, with their ends."""
    return list(io.StringIO(text, newline=""))


def _go_on(known: dict[str, str], table: Mapping[str, str]) -> None:
    """Add a release's renames to those before: what was renamed once may be again."""
    for old, new in known.items():
        known[old] = table.get(new, new)
    known.update(table)
