"""gunicorn's workers: their number, limits, metrics and end; test_server.py copies it."""

import importlib.machinery
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import anyio
import httpx2
import pytest
from tests.core.test_metrics import REQUESTS, value_of
from tests.fixtures.process import reserve_port

CONF = Path("gunicorn.conf.py").resolve()
PATIENCE_SECONDS = 300
ASKED = 30


@pytest.fixture
def conf(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The configuration, as gunicorn loads it."""
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.setenv("WEB_CONCURRENCY", "2")
    loader = importlib.machinery.SourceFileLoader("__config__", str(CONF))
    spec = importlib.util.spec_from_file_location("__config__", CONF, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    yield module
    shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR")


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, None),
        ({"": "max 100000"}, None),
        ({"": "100000 100000"}, 1),
        ({"": "25000 100000"}, 1),
        ({"pod/container": "199000 100000"}, 1),
        # That of a group above counts as well.
        ({"pod/container": "max 100000", "pod": "100000 100000"}, 1),
        ({"other": "100000 100000"}, None),
    ],
)
def test_workers_are_what_the_quota_pays_for(
    conf: ModuleType, tmp_path: Path, limits: dict[str, str], expected: int | None
) -> None:
    groups = tmp_path / "sys/fs/cgroup"
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/pod/container\n")
    for name, text in limits.items():
        (groups / name).mkdir(parents=True, exist_ok=True)
        (groups / name / "cpu.max").write_text(f"{text}\n")
    assert conf.processors(tmp_path) == (expected or len(os.sched_getaffinity(0)))
    assert conf.processors(tmp_path / "nothing") == len(os.sched_getaffinity(0))


async def test_workers_are_bounded_replaced_and_counted_together(
    database_url: str, tmp_path: Path
) -> None:
    port = reserve_port()
    output = tmp_path / "output.log"
    kept = {k: v for k, v in os.environ.items() if k != "PROMETHEUS_MULTIPROC_DIR"}
    with output.open("wb") as file:
        process = subprocess.Popen(
            [
                Path(sys.executable).with_name("gunicorn"),
                f"--bind=127.0.0.1:{port}",
                f"--max-requests={ASKED // 3}",
                "--max-requests-jitter=0",
                "--root-path=/shop",
            ],
            env={**kept, "DATABASE_URL": database_url, "HEAD_TIMEOUT_SECONDS": "1"},
            stdout=file,
            stderr=file,
        )
    url = f"http://127.0.0.1:{port}"
    headers = {"Connection": "close"}
    asked = {"method": "GET", "route": "/health/live", "status": "200"}
    try:
        async with httpx2.AsyncClient(
            base_url=url, headers=headers, timeout=PATIENCE_SECONDS
        ) as client:
            with anyio.fail_after(PATIENCE_SECONDS):
                while True:
                    with suppress(httpx2.TransportError):
                        # Not counted below.
                        if (await client.get("/nothing")).status_code == 404:
                            break
                    assert process.poll() is None, output.read_text()
                    await anyio.sleep(0.1)
            # Workers end among these, and none of these fails.
            for _ in range(ASKED):
                assert (await client.get("/health/live")).status_code == 200
            schema = (await client.get("/openapi.json")).json()
            assert schema["servers"] == [{"url": "/shop"}]
            text = (await client.get("/metrics")).text
            assert value_of(text, REQUESTS, **asked) == ASKED
        booted = re.findall(r"Booting worker with pid", output.read_text())
        assert len(booted) > 1

        for head in (b"GET / HTTP/1.1\r\na: " + b"b" * 200_000, b"GET / HTTP/1.1\r\nHost"):
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                with anyio.fail_after(PATIENCE_SECONDS), suppress(anyio.BrokenResourceError):
                    await stream.send(head)
                    received = b"".join([part async for part in stream])
                    assert received == b"" or b" 431 " in received
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(PATIENCE_SECONDS)
        finally:
            process.kill()
    assert code == 0, output.read_text()
    assert "Traceback" not in output.read_text()
