"""The service, a worker and the migration from the image, on real servers; test_image.py copies it.

The image's root is read-only and the processes are the image's user.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio
import httpx2
import pytest
from tests.fixtures.process import reserve_port

IMAGE = json.loads(Path(os.environ["IMAGE_DESCRIPTION"]).read_text())
ORDER = {
    "customer_email": "ada@example.com",
    "lines": [{"sku": "TEA-250", "quantity": 1, "unit_price": "12.50"}],
}
ADA = {"email": "ada@example.com", "password": "bernoulli numbers by engine"}
PATIENCE_SECONDS = 120
Start = Callable[..., subprocess.Popen[bytes]]
SETTINGS = {"SECRET_KEY": secrets.token_hex(32), "SHUTDOWN_DRAIN_SECONDS": "0"}
DATABASE = "sqlite:////data/app.db"


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts a command of the image; the one of its file without arguments."""
    data = tmp_path / "data"
    data.mkdir()
    own = {**SETTINGS, "DATABASE_URL": DATABASE}
    if "scratch_database_url" in IMAGE["fixtures"]:
        own["DATABASE_URL"] = request.getfixturevalue("scratch_database_url")
    if "redis_url" in IMAGE["fixtures"]:
        own["REDIS_URL"] = request.getfixturevalue("redis_url")
    variables = [f"{name}={value}" for name, value in own.items()]
    prefix = [str(data) if part == "DATA" else part for part in IMAGE["prefix"]]
    with ExitStack() as stack:

        def run(*command: str) -> subprocess.Popen[bytes]:
            log = stack.enter_context((tmp_path / f"{len(started)}.log").open("wb"))
            started.append(
                subprocess.Popen([*prefix, *variables, *command], stdout=log, stderr=log)
            )
            return started[-1]

        started: list[subprocess.Popen[bytes]] = []
        yield run
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait()
        # pytest shows it where the test has failed.
        shown = [f"--- {log.name}\n{log.read_text()[-1000:]}" for log in tmp_path.glob("*.log")]
        sys.stdout.write("\n".join(shown))


def with_port(command: list[str], port: int) -> list[str]:
    """The image's command, which names port 8000, for another one."""
    changed = [part.replace("8000", str(port)) for part in command]
    assert changed != command
    return changed


async def code_of(process: subprocess.Popen[bytes]) -> int:
    with anyio.fail_after(PATIENCE_SECONDS):
        while (code := process.poll()) is None:
            await anyio.sleep(0.05)
    return code


async def becomes(check: Callable[[], subprocess.Popen[bytes]]) -> None:
    """Wait until a check of the image ends with 0."""
    with anyio.fail_after(PATIENCE_SECONDS):
        while await code_of(check()) != 0:
            await anyio.sleep(0.2)


async def test_everything_runs_from_the_image(start: Start) -> None:
    # Nothing can be written but /tmp and the data, and nobody is root.
    assert await code_of(start("sh", "-c", "touch /tmp/x && ! touch /srv/x && ! touch /x")) == 0
    assert await code_of(start("sh", "-c", '[ "$(id -u):$(id -g)" = 10001:10001 ]')) == 0

    assert await code_of(start("alembic", "upgrade", "head")) == 0
    port = reserve_port()
    service = start(*with_port(IMAGE["command"], port))
    health = with_port(IMAGE["health"], port)
    await becomes(lambda: start(*health))
    worker = None
    if IMAGE["has_worker"]:
        worker = start("python", "-m", "app.worker")
        await becomes(lambda: start("python", "-m", "app.worker", "--check"))

    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        assert (await client.get("/health/ready")).status_code == 200
        # It runs as in production without being told.
        assert (await client.get("/docs")).status_code == 404
        if IMAGE["has_users"]:
            assert (await client.post("/api/v1/users", json=ADA)).status_code == 201
            form = {"username": ADA["email"], "password": ADA["password"]}
            token = (await client.post("/api/v1/auth/token", data=form)).json()["access_token"]
            client.headers["Authorization"] = f"Bearer {token}"
        if IMAGE["has_orders"]:
            placed = await client.post("/api/v1/orders", json=ORDER)
            assert placed.status_code == 201
            with anyio.fail_after(PATIENCE_SECONDS):
                while (await client.get(placed.headers["Location"])).json()["status"] == "placed":
                    await anyio.sleep(0.1)

    for process in filter(None, (worker, service)):
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "Uid:\t10001\t10001\t10001\t10001" in status
        process.send_signal(signal.SIGTERM)
    # uvicorn raises the signal again when all is done; process 1 of a container ignores that, and
    # ends with 0.
    assert await code_of(service) in (0, -signal.SIGTERM)
    if worker:
        assert await code_of(worker) == 0


async def test_nothing_is_compiled_when_it_starts(start: Start, tmp_path: Path) -> None:
    modules = "app.main, migrations" + (", app.worker" if IMAGE["has_worker"] else "")
    assert await code_of(start("python", "-v", "-c", f"import {modules}")) == 0
    log = (tmp_path / "0.log").read_text()
    compiled = [line for line in log.splitlines() if line.startswith("# code object from '/srv/")]
    assert [line for line in compiled if not line.endswith(".pyc'")] == []
    was_read = "/srv/app/__pycache__/main." in log
    assert was_read
