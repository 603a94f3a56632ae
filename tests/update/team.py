"""What a team does to a service between two updates, and how it updates it."""

import re
from pathlib import Path
from typing import Any

import copier

from tests.rendering import fast_copier
from tests.update.next_major import MOVED, renamed
from tests.update.next_release import replace
from tests.update.repository import commit, run_git

DOMAIN: dict[str, str] = {
    "__init__.py": '"""Invoices."""\n',
    "models.py": '''"""The tables of invoices."""

from uuid import UUID

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base


class Invoice(Base):
    """What somebody owes."""

    __tablename__ = "invoices"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[str] = mapped_column(String(32))
''',
    "router.py": '''"""The HTTP interface of invoices."""

from fastapi import APIRouter
from sqlalchemy import func, select

from app.billing.models import Invoice
from app.core.database import ReadSessionDep

router = APIRouter(prefix="/api/v1/invoices", tags=["billing"])


@router.get("/count")
async def count_invoices(session: ReadSessionDep) -> int:
    """How many invoices there are."""
    return await session.scalar(select(func.count()).select_from(Invoice)) or 0
''',
    "bank.py": '''"""What the bank calls."""

from fastapi import APIRouter

router = APIRouter(prefix="/bank", tags=["billing"])


@router.post("/notifications", status_code=204)
async def notify() -> None:
    """Take notice of a payment."""
''',
    # Of what a major release may rename: modules and a setting.
    "lists.py": '''"""Lists of invoices."""

from app.core.pagination import DEFAULT_LIMIT, MAX_LIMIT
from app.core.settings import AppSettings

LIMITS = (DEFAULT_LIMIT, MAX_LIMIT)


def patience(settings: AppSettings) -> float:
    """How long may a list take when the service is about to end."""
    return settings.SHUTDOWN_DRAIN_SECONDS
''',
}

TEST = '''"""The team's own test."""

import httpx2


async def test_there_are_no_invoices_yet(client: httpx2.AsyncClient) -> None:
    response = await client.get("/api/v1/invoices/count")
    assert (response.status_code, response.json()) == (200, 0)


async def test_the_bank_is_not_rate_limited(client: httpx2.AsyncClient) -> None:
    response = await client.post("/bank/notifications")
    assert response.status_code == 204
    assert "RateLimit-Limit" not in response.headers
'''

MIGRATION = '''"""Invoices."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "invoices",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invoices")),
    )


def downgrade() -> None:
    op.drop_table("invoices")
'''

# Files of the template that a team writes in: what is replaced, and by what.
EDITS = {
    "app/domains.py": (
        (
            "from fastapi import APIRouter\n\n",
            "from fastapi import APIRouter\n\n"
            "from app.billing.router import router as billing_router\n",
        ),
        (
            "PROTECTED_ROUTERS: Sequence[APIRouter] = ()",
            "PROTECTED_ROUTERS: Sequence[APIRouter] = (billing_router,)",
        ),
    ),
    # What is mounted in app/domains.py is rate-limited; a bank's notifications must not be.
    "app/api.py": (
        (
            "from app import domains\n",
            "from app import domains\nfrom app.billing.bank import router as bank_router\n",
        ),
        (
            "    app.include_router(health_router)\n",
            "    app.include_router(health_router)\n    app.include_router(bank_router)\n",
        ),
    ),
    "app/core/http_stack.py": (
        ('    "X-Request-ID",\n', '    "X-Billing",\n    "X-Request-ID",\n'),
    ),
    "app/settings.py": (("    APP_NAME: ", '    BILLING_CURRENCY: str = "EUR"\n    APP_NAME: '),),
    ".env.example": (
        (
            "# Calls to other services: ",
            "# What invoices are written in.\nBILLING_CURRENCY=EUR\n\n# Calls to other services: ",
        ),
    ),
    "pyproject.toml": (('  "starlette>=', '  "idna>=3,<4",\n  "starlette>='),),
    "README.md": (
        (
            "| `GET /health/live` |",
            "| `GET /api/v1/invoices/count` | how many there are |\n| `GET /health/live` |",
        ),
    ),
}
EXAMPLE_EDITS = {
    "app/orders/exceptions.py": (
        (
            "class OrderNotCancellableError(",
            "class OrderInvoicedError(ConflictError):\n"
            '    """There is an invoice for the order already."""\n\n'
            '    code = "order-invoiced"\n'
            '    title = "Order was invoiced"\n\n\n'
            "class OrderNotCancellableError(",
        ),
    ),
}
README_SECTION = "\n## Billing\n\nThe finance team owns `app/billing`.\n"
ENVIRONMENT = "APP_NAME=From the team\nBILLING_CURRENCY=CHF\n"
# A file of the template that the team does without.
DELETED = "tests/core/test_threads.py"


def change_as_a_team(service: Path, *, major: bool = False) -> dict[str, list[str]]:
    """Give a service a domain, a migration, settings and prose of its own, commit all.

    Args:
        service: Its folder.
        major: Whether it is of the made-up release that has moved files.

    Returns:
        The lines that the team wrote, by file: what no update may lose.
    """
    has_example = (service / "app" / "orders").exists()
    edits = {**EDITS, **(EXAMPLE_EDITS if has_example else {})}
    if major:
        edits = {MOVED.get(name, name): replacements for name, replacements in edits.items()}
    before = {name: (service / name).read_text().splitlines() for name in edits}
    for name, text in DOMAIN.items():
        _write(service / "app" / "billing" / name, renamed(text) if major else text)
    _write(service / "tests" / "billing" / "__init__.py", "")
    _write(service / "tests" / "billing" / "test_invoices.py", TEST)
    versions = service / "migrations" / "versions"
    [seed] = [p for p in versions.glob("*.py") if p.name != "__init__.py"]
    head = re.search(r'^revision\b.*?"(.+)"', seed.read_text(), re.MULTILINE)
    assert head is not None, f"{seed.name} has no revision"
    seed.rename(versions / "2026_first.py")
    _write(versions / "0002_invoices.py", MIGRATION.format(head=head[1]))
    for name, replacements in edits.items():
        replace(service / name, replacements)
    with (service / "README.md").open("a") as readme:
        readme.write(README_SECTION)
    _write(service / ".env", ENVIRONMENT)
    (service / DELETED).unlink()
    commit(service, "Write invoices")
    written = {
        name: [line for line in (service / name).read_text().splitlines() if line not in lines]
        for name, lines in before.items()
    }
    assert all(written.values()), "the team wrote nothing in one of the files"
    return {**written, ".env": ENVIRONMENT.splitlines()}


def update(service: Path, version: str | None = None, **answers: Any) -> None:
    """Update a service to a release, or to the newest, without trust and without a commit."""
    with fast_copier():
        copier.run_update(
            service,
            data=answers,
            defaults=True,
            overwrite=True,
            quiet=True,
            unsafe=False,
            vcs_ref=version,
        )


def conflicts(service: Path) -> list[str]:
    """The files that an update left with conflict markers, or with a rejected change."""
    unmerged = run_git(service, "ls-files", "--unmerged", "--format=%(path)").split("\n")
    rejected = [p.relative_to(service).as_posix() for p in service.rglob("*.rej")]
    return sorted({*filter(None, unmerged), *rejected})


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
