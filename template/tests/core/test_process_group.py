"""A signal to a whole process group, as systemd sends it, with several workers."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import httpx2

from tests.fixtures.process import ModuleProcess, reserve_port
from tests.fixtures.server import ServedProcess

_START_SECONDS = 90


@contextmanager
def _supervised(database_url: str, folder: Path) -> Iterator[ServedProcess]:
    """uvicorn with two workers, in a process group of its own."""
    port = reserve_port()
    environment = {
        **os.environ,
        "ENVIRONMENT": "production",
        "DATABASE_URL": database_url,
        "SHUTDOWN_DRAIN_SECONDS": "4",
    }
    output = folder / "output.log"
    process = ModuleProcess(
        "tests.core.grouped_uvicorn",
        ["app.main:create_app", "--factory", "--workers", "2", "--port", str(port)],
        folder=folder,
        environment=environment,
        output=output,
    )
    try:
        yield ServedProcess(f"http://127.0.0.1:{port}", process, output)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()


async def test_a_signal_that_also_comes_through_the_supervisor_drains_as_one(
    database_url: str, tmp_path: Path
) -> None:
    with _supervised(database_url, tmp_path) as server:
        with anyio.fail_after(_START_SECONDS):
            while server.logs().count("Application startup complete.") < 2:
                await anyio.sleep(0.05)
        os.killpg(server.process.pid, signal.SIGTERM)
        with anyio.fail_after(_START_SECONDS):
            while server.logs().count("Terminated child process") < 2:
                await anyio.sleep(0.05)
        # Both workers have got it a second time. uvicorn looks ten times a second.
        await anyio.sleep(0.5)
        async with httpx2.AsyncClient(base_url=server.url) as client:
            answer = await client.get("/health/ready")
        assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
        await server.wait()
        logs = server.logs()
        assert logs.count('"event":"draining"') == 2
        assert logs.count("Application shutdown complete.") == 2
        assert "Traceback" not in logs
