"""What a team writes where the template leaves it room: files and places that no update touches."""

from pathlib import Path

from tests.update.next_release import replace
from tests.update.repository import commit

ROLES = "app/core/roles.py"
# Files of the template that are a team's from then on: no release may change them.
OWN_FILES = ("app/domains.py", "app/domain_resources.py", "app/domain_settings.py", ROLES)

DOMAIN = {
    "__init__.py": '"""Lending."""\n',
    "printer.py": '''"""The printer of slips."""

from typing import Annotated

import idna
from fastapi import Depends
from pydantic import Field
from starlette.requests import HTTPConnection

from app.core.settings import Section


class PrinterSettings(Section):
    """Where slips are printed."""

    PRINTER_HOST: str = Field(default="localhost", description="Its host name.")


class Printer:
    """Prints slips while it is open."""

    def __init__(self, settings: PrinterSettings) -> None:
        self.host = idna.encode(settings.PRINTER_HOST).decode()
        self.is_open = True

    async def ping(self) -> None:
        """Find out whether it is open."""
        if not self.is_open:
            raise ConnectionError("the printer is closed")


async def get_printer(connection: HTTPConnection) -> Printer:
    printer: Printer = connection.state.printer
    return printer


PrinterDep = Annotated[Printer, Depends(get_printer)]
''',
    "router.py": '''"""The HTTP interface of lending."""

from fastapi import APIRouter

from app.lending.printer import PrinterDep

router = APIRouter(prefix="/api/v1/printer", tags=["lending"])


@router.get("")
async def get_printers_host(printer: PrinterDep) -> str:
    """Say where slips are printed."""
    return printer.host
''',
}
TEST = '''"""The team's own test."""

import pytest
from fastapi import FastAPI

from app.settings import InvalidSettingsError, load_settings
from tests.fixtures.application import Connect, MakeApp


async def test_a_route_uses_what_was_opened_with_an_own_setting(
    make_app: MakeApp, connect: Connect
) -> None:
    async with connect(make_app(PRINTER_HOST="bücher.example")) as client:
        assert (await client.get("/api/v1/printer")).json() == "xn--bcher-kva.example"
        assert (await client.get("/health/ready")).json()["checks"]["printer"] == "ok"


async def test_it_is_closed_at_the_end(app: FastAPI) -> None:
    async with app.router.lifespan_context(app) as state:
        assert state is not None
        printer = dict(state)["printer"]
        assert printer.is_open
    assert not printer.is_open


def test_an_own_setting_is_refused_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENDING_DAYS", "0")
    with pytest.raises(InvalidSettingsError, match=r"LENDING_DAYS: .* greater than"):
        load_settings()
'''

FILES = {
    **{f"app/lending/{name}": text for name, text in DOMAIN.items()},
    "tests/lending/__init__.py": "",
    "tests/lending/test_lending.py": TEST,
    "own.just": "# Print a slip.\nslip:\n    {{ uv }} run python -c 'print(\"slip\")'\n",
}
# By file: what is replaced, each found once, and by what. A team would replace these, too.
EDITS = {
    "app/domains.py": (
        (
            "from app.core.events import EventBus\n",
            "from app.core.events import EventBus\nfrom app.lending.router import router\n",
        ),
        (
            "PUBLIC_ROUTERS: Sequence[APIRouter] = ()",
            "PUBLIC_ROUTERS: Sequence[APIRouter] = (router,)",
        ),
    ),
    "app/domain_settings.py": (
        (
            "from app.core.settings import Section\n\n\nclass DomainSettings(Section):\n",
            "from pydantic import Field\n\nfrom app.lending.printer import PrinterSettings\n\n\n"
            "class DomainSettings(PrinterSettings):\n",
        ),
        (
            'beside the template\'s settings."""\n',
            'beside the template\'s settings."""\n\n'
            '    LENDING_DAYS: int = Field(default=14, ge=1, le=365, description="For a book.")\n',
        ),
    ),
    "app/domain_resources.py": (
        (
            "from app.health.service import HealthService\n",
            "from app.health.service import HealthService\n"
            "from app.lending.printer import Printer\n",
        ),
        ('process lives: `printer: Printer`."""\n', 'process lives."""\n\n    printer: Printer\n'),
        (
            "    yield DomainState()\n",
            "    printer = Printer(settings)\n"
            "    yield DomainState(printer=printer)\n"
            "    printer.is_open = False\n",
        ),
        (
            "answers requests.\n\n"
            '    `health.add("printer", resources["printer"].ping, required=False)`\n    """\n',
            'answers requests."""\n'
            '    health.add("printer", resources["printer"].ping, required=False)\n',
        ),
    ),
    "pyproject.toml": (
        (
            "uv add` writes here; no update does.\n",
            'uv add` writes here; no update does.\n  "idna>=3,<4",\n',
        ),
        (
            '{ include-group = "template" },\n  # Your own, below; no update writes here.\n',
            '{ include-group = "template" },\n  # Your own, below; no update writes here.\n'
            '  "packaging>=24",\n',
        ),
        (
            "  # Your own, below; no update writes here.\n]\n#",
            '  # Your own, below; no update writes here.\n  "zict",\n]\n#',
        ),
    ),
}
ENDS = {
    ".env.example": "\n# Where slips are printed.\nPRINTER_HOST=localhost\n# For a book.\n"
    "LENDING_DAYS=14\n",
    "README.md": "\n## Lending\n\nWho lends books asks the printer first.\n",
    "AGENTS.md": "\n## What we have agreed on\n\nWhoever lends a book prints a slip.\n",
    "pyproject.toml": "\n[tool.ruff.lint.extend-per-file-ignores]\n"
    '"app/lending/printer.py" = ["D103"]\n',
}
ROLE = (
    ('    ADMIN = "admin"\n', '    LIBRARIAN = "librarian"\n    ADMIN = "admin"\n'),
    (
        '= {Role.ADMIN: "Manage the accounts of others."}\n',
        "= {\n"
        '    Role.LIBRARIAN: "Lend books.",\n'
        '    Role.ADMIN: "Manage the accounts of others.",\n'
        "}\n",
    ),
)


def write_in_seams(service: Path) -> None:
    """Give a service settings, resources, roles and so on of its own, and commit all."""
    for name, text in FILES.items():
        path = service / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name, replacements in EDITS.items():
        replace(service / name, replacements)
    if (service / ROLES).exists():
        replace(service / ROLES, ROLE)
    for name, text in ENDS.items():
        with (service / name).open("a") as file:
            file.write(text)
    commit(service, "Lend books")
