"""A major release that does not exist yet: the template with files in other places."""

import re
from pathlib import Path

from tests.update.next_release import replace

# Of a service, without `.jinja`: where a file is, and where it comes to be.
MOVED = {
    "app/core/http_stack.py": "app/core/http/stack.py",
    "app/core/middleware.py": "app/core/http/middleware.py",
    "app/core/pagination.py": "app/core/api/pagination.py",
    "tests/core/test_pagination.py": "tests/core/api/test_pagination.py",
}
PACKAGES = ("app/core/api", "app/core/http", "tests/core/api")
# A line of a moved file that changes with it, near one that a team has changed.
CHANGED = ('    "Location",\n', '    "Link",\n    "Location",\n')
OLD_SETTING, NEW_SETTING = "SHUTDOWN_DRAIN_SECONDS", "DRAIN_SECONDS"


def module(path: str) -> str:
    """The dotted name of a Python file."""
    return path.removesuffix(".py").replace("/", ".")


def renamed(text: str) -> str:
    """A text with the names of the new places."""
    for old, new in MOVED.items():
        text = re.sub(rf"\b{re.escape(module(old))}\b", module(new), text)
    return re.sub(rf"\b{OLD_SETTING}\b", NEW_SETTING, text)


def make_next_major(folder: Path, version: str) -> None:
    """Move files of the template in `folder`, and say so in its table of renames."""
    template = folder / "template"
    for package in PACKAGES:
        (template / package).mkdir()
        (template / package / "__init__.py").write_text(f'"""The room {package}."""\n')
    for path in sorted(template.rglob("*")):
        if path.is_file() and path.suffix in (".py", ".jinja", ".md", ".yaml", ".toml"):
            text = path.read_text()
            if (new := renamed(text)) != text:
                path.write_text(new)
    for old, new in MOVED.items():
        (template / old).rename(template / new)
    replace(template / MOVED["app/core/http_stack.py"], (CHANGED,))
    modules = "".join(
        f'"{module(old)}" = "{module(new)}"\n' for old, new in MOVED.items() if "tests" not in old
    )
    settings = f'{OLD_SETTING} = "{NEW_SETTING}"\n'
    table = f'["{version}".modules]\n{modules}\n["{version}".settings]\n{settings}'
    (folder / "renames.toml").write_text(table)
    changelog = folder / "CHANGELOG.md"
    entry = f"## [{version}] - 2099-01-01\n\nRooms.\n\nWhen you update: look around.\n\n## ["
    changelog.write_text(changelog.read_text().replace("## [", entry, 1))
