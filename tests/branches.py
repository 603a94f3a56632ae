"""Records which way each condition of the template went, to find those that go only one way."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from copier._jinja_ext import SandboxedEnvironment
from jinja2 import nodes

from tests.snapshot import template_files

Outcome = tuple[str, int, int]
"""Where a condition stands: source, line, and which of that line's conditions it is."""


@dataclass
class BranchRecorder:
    """The conditions that were compiled, and how each was decided."""

    outcomes: dict[Outcome, set[bool]] = field(default_factory=dict)

    def record(self, where: Outcome, value: Any) -> Any:
        """Note how the condition was decided and pass its value on."""
        self.outcomes[where].add(bool(value))
        return value

    def one_way(self) -> list[str]:
        """The conditions that were not decided both ways, as lines to show."""
        return [
            f"{source}:{line}: {'never decided' if not seen else f'always {seen.copy().pop()}'}"
            for (source, line, _), seen in sorted(self.outcomes.items())
            if seen != {True, False}
        ]

    def instrument(
        self, tree: nodes.Template, source: str, environment: SandboxedEnvironment
    ) -> nodes.Template:
        """Have every condition of `if`, `elif`, inline `if` and `for ... if` recorded."""
        for number, node in enumerate(conditions(tree)):
            where = (source, node.lineno, number)
            self.outcomes.setdefault(where, set())
            place = nodes.Const(where, lineno=node.lineno)
            call = nodes.EnvironmentAttribute("record_branch", lineno=node.lineno)
            node.test = nodes.Call(call, [place, node.test], [], None, None, lineno=node.lineno)
        tree.set_environment(environment)
        return tree


def conditions(tree: nodes.Template) -> list[Any]:
    """Every node with a condition, in the order of the source."""
    found: list[Any] = list(tree.find_all((nodes.If, nodes.CondExpr, nodes.For)))
    return [node for node in found if node.test is not None]


@contextmanager
def recorded_branches() -> Iterator[BranchRecorder]:
    """Record the conditions of all that Copier renders meanwhile."""
    recorder = BranchRecorder()
    parse = SandboxedEnvironment._parse

    def parse_and_instrument(
        self: SandboxedEnvironment, source: str, name: str | None, filename: str | None
    ) -> nodes.Template:
        tree = parse(self, source, name, filename)
        return recorder.instrument(tree, name or f"copier.yml: {source.strip()}", self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SandboxedEnvironment, "_parse", parse_and_instrument)
        patch.setattr(
            SandboxedEnvironment, "record_branch", staticmethod(recorder.record), raising=False
        )
        yield recorder


def jinja_files(template: Path) -> list[str]:
    """Every file of the template that Jinja reads, relative to it."""
    names = [name.as_posix() for name in template_files()]
    folders = ("extensions/", "template/")
    jinja = [name for name in names if name.endswith(".jinja") and name.startswith(folders)]
    return [name for name in jinja if (template / name).exists()]
