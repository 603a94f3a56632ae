"""A release that does not exist yet: what the template may do next, on top of the working tree."""

from pathlib import Path

# By file of the template: what is replaced, each found once, and by what. Several places of a
# module of the core, what templates share, prose, and a setting with its line in `.env.example`.
CHANGED = {
    "template/app/core/pagination.py": (
        ('"""Keyset pagination, newest first', '"""Pages of lists by keyset, newest first'),
        ("is not a cursor of this list; start again", "is no cursor of this list; start anew"),
        (
            "    key: UUID = row.id\n    return key\n",
            "    found: UUID = row.id\n    return found\n",
        ),
    ),
    "template/app/core/compression.py": (("_LEVEL = 1\n", "_LEVEL = 2\n"),),
    "template/app/core/http_stack.py": (
        ("The Host header names another service.", "The Host header is that of another service."),
        ("_detail = bytes(refusal.body).decode()", "_detail = bytes(refusal.body).decode('utf-8')"),
    ),
    "template/app/core/settings.py": (
        (
            "    SHUTDOWN_TIMEOUT_SECONDS: ",
            '    READ_ONLY: bool = Field(default=False, description="Refuses writes.")\n'
            "    SHUTDOWN_TIMEOUT_SECONDS: ",
        ),
    ),
    "template/.env.example.jinja": (
        ("LOG_LEVEL=INFO\n", "LOG_LEVEL=INFO\n# Refuses writes.\nREAD_ONLY=false\n"),
        ("# Checks that are shown", "# Checks of readiness that are shown"),
    ),
    "template/app/api.py.jinja": (
        ("Connect the domains to the events that", "Connect every domain to the events that"),
    ),
    "template/app/orders/exceptions.py": (
        ("No such order, or one of another owner", "There is none, or it has another owner"),
    ),
    "template/README.md.jinja": (
        ("`uv run just fix` | corrects lint findings", "`uv run just fix` | repairs lint findings"),
        ("- Migrate once for each release, before", "- Migrate once for every release, before"),
    ),
    "template/AGENTS.md.jinja": (("Write there first: ", "Write there, if you can: "),),
    "template/justfile": (("# Recipes that come with", "# The recipes that come with"),),
    "template/app/settings.py.jinja": (
        ("    AppSettings,\n    LoggingSettings,\n", "    LoggingSettings,\n    AppSettings,\n"),
    ),
    "template/pyproject.toml.jinja": (
        ("fail_under = 95\n", "fail_under = 94\n"),
        ("# Pydantic pins the one version", "# Pydantic has pinned the one version"),
    ),
    "extensions/dependencies.jinja": (
        ("'structlog>=26.1'", "'structlog>=26.1,<99'"),
        # The first and the last of their lists: next to what teams write.
        ("'uuid-utils>=1.2,<2'", "'uuid-utils>=1.2,<3'"),
        ("'coverage>=7.17,<8'", "'coverage>=7.17,<9'"),
    ),
}
ADDED = {
    "app/core/weekdays.py": '"""The days of a week."""\n\nDAYS = 7\n',
    "docs/decisions/0099-count-from-one.md": "# Count from one\n",
}
DELETED = ("docs/decisions/0003-keyset-pagination.md", "tests/core/test_principal.py")


def make_next_release(folder: Path) -> None:
    """Change the template in `folder` as the tables above say.

    Raises:
        AssertionError: if the template no longer holds what is to change; choose another place.
    """
    for name, replacements in CHANGED.items():
        replace(folder / name, replacements)
    for name, text in ADDED.items():
        path = folder / "template" / name
        assert not path.exists(), f"{name} exists; choose another file to add"
        path.write_text(text)
    for name in DELETED:
        (folder / "template" / name).unlink()


def replace(path: Path, replacements: tuple[tuple[str, str], ...]) -> None:
    """Replace texts in a file, each of which it must hold exactly once."""
    text = path.read_text()
    for old, new in replacements:
        assert text.count(old) == 1, f"{path.name} holds {old!r} {text.count(old)} times"
        text = text.replace(old, new)
    path.write_text(text)
