"""A column gets another name in five releases, under load; test_side_by_side.py copies it.

Before each release the new code migrates, while the old one serves; then both serve.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

import anyio
import httpx2
from tests.fixtures.process import reserve_port

PATIENCE = 90
OLD = "customer_email: Mapped[str] = mapped_column(String(254))"
NEW = 'customer_email: Mapped[str] = mapped_column("contact", String(254))'
BOTH = """
    @validates("customer_email")
    def _write_both(self, _: str, value: str) -> str:
        self.{other} = value
        return value

    version: Mapped[int]"""
# By release what the model says of the column, and what its migration does.
RELEASES = {
    "before": (OLD, "", "pass"),
    # Writes both, reads the old one.
    "expand": (
        f"{OLD}\n    contact: Mapped[str | None] = mapped_column(String(254))",
        "contact",
        'op.add_column("orders", sa.Column("contact", sa.String(254)))',
    ),
    # Writes both, reads the new one.
    "migrate": (
        f'{NEW}\n    legacy: Mapped[str | None] = mapped_column("customer_email", String(254))',
        "legacy",
        'op.execute("UPDATE orders SET contact = customer_email WHERE contact IS NULL")\n'
        '    op.alter_column("orders", "customer_email", nullable=True)',
    ),
    # No longer knows the old one.
    "forget": (NEW, "", 'op.alter_column("orders", "contact", nullable=False)'),
    "contract": (NEW, "", 'op.drop_column("orders", "customer_email")'),
}


def make_release(folder: Path, number: int) -> None:
    """Copy the service, with the model and all migrations up to this release."""
    project = Path.cwd()
    shutil.copytree(project / "app", folder / "app")
    shutil.copytree(project / "migrations", folder / "migrations")
    for name in ("alembic.ini", "pyproject.toml"):
        shutil.copy(project / name, folder)
    names = list(RELEASES)
    column, other, _ = RELEASES[names[number]]
    models = folder / "app" / "orders" / "models.py"
    text = models.read_text()
    assert text.count(OLD) == 1
    text = text.replace(OLD, column)
    if other:
        text = text.replace(
            "import Mapped, mapped_column", "import Mapped, mapped_column, validates"
        )
        text = text.replace("\n    version: Mapped[int]", BOTH.format(other=other), 1)
        assert "validates(" in text
    models.write_text(text)
    for step in range(1, number + 1):
        (folder / f"migrations/versions/{step:04}_release.py").write_text(
            f'import sqlalchemy as sa\nfrom alembic import op\n\nrevision = "r{step}"\n'
            f'down_revision = "{f"r{step - 1}" if step > 1 else "0001"}"\n\n\n'
            f"def upgrade() -> None:\n    {RELEASES[names[step]][2]}\n"
        )


def environment(database_url: str, folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "DATABASE_URL": database_url,
        "PYTHONPATH": str(folder),
        "RATE_LIMIT_REQUESTS": "1000000",
    }


@contextmanager
def started(database_url: str, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = reserve_port()
    with (folder / "output.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "app.main:create_app", "--factory", f"--port={port}"],
            cwd=folder,
            env=environment(database_url, folder),
            stdout=output,
            stderr=output,
        )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


class Load:
    """Places and lists orders on whatever serves; counts what is answered."""

    def __init__(self) -> None:
        self.urls: list[str] = []
        self.in_flight: Counter[str] = Counter()
        self.answers: Counter[tuple[str, int]] = Counter()

    async def run(self) -> None:
        async with httpx2.AsyncClient(timeout=PATIENCE) as client:
            for number in count():
                url = self.urls[number % len(self.urls)]
                self.in_flight[url] += 1
                await self.ask(client, url)
                self.in_flight[url] -= 1
                await anyio.sleep(0.02)

    async def ask(self, client: httpx2.AsyncClient, url: str) -> None:
        line = {"sku": "TEA-1", "quantity": 1, "unit_price": "1.50"}
        order = {"customer_email": "ada@example.com", "lines": [line]}
        placed = await client.post(f"{url}/api/v1/orders", json=order)
        self.answers["POST", placed.status_code] += 1
        listed = await client.get(f"{url}/api/v1/orders", params={"limit": 5})
        self.answers["GET", listed.status_code] += 1
        emails = {item["customer_email"] for item in listed.json()["items"]}
        assert emails == {"ada@example.com"}

    async def goes_on(self) -> None:
        """Wait until as many more requests were answered."""
        until = self.answers.total() + 30
        with anyio.fail_after(PATIENCE):
            while self.answers.total() < until:
                await anyio.sleep(0.01)

    async def leave(self, url: str) -> None:
        """Send nothing more to a server, as a load balancer does before its end."""
        self.urls.remove(url)
        with anyio.fail_after(PATIENCE):
            while self.in_flight[url]:
                await anyio.sleep(0.01)


async def ready(url: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    async with httpx2.AsyncClient(base_url=url) as client:
        with anyio.fail_after(PATIENCE):
            while True:
                assert process.poll() is None, (folder / "output.log").read_text()
                with suppress(httpx2.TransportError):
                    if (await client.get("/health/ready")).status_code == 200:
                        return
                await anyio.sleep(0.05)


async def migrate(database_url: str, folder: Path) -> None:
    await anyio.run_process(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=folder,
        env=environment(database_url, folder),
    )


async def test_old_and_new_code_serve_side_by_side(database_url: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        requests = Load()
        serving: tuple[subprocess.Popen[bytes], str] | None = None
        for number, name in enumerate(RELEASES):
            folder = tmp_path / name
            folder.mkdir()
            make_release(folder, number)
            await migrate(database_url, folder)
            if serving:
                await requests.goes_on()
            process, url = stack.enter_context(started(database_url, folder))
            await ready(url, process, folder)
            requests.urls.append(url)
            if not serving:
                tasks.start_soon(requests.run)
                tasks.start_soon(requests.run)
            await requests.goes_on()
            if serving:
                old, old_url = serving
                await requests.leave(old_url)
                old.send_signal(signal.SIGTERM)
                # uvicorn ends by the signal again when all is done.
                assert await anyio.to_thread.run_sync(old.wait) in (0, -signal.SIGTERM)
            serving = process, url
        tasks.cancel_scope.cancel()

    assert {status for _, status in requests.answers} == {200, 201}
