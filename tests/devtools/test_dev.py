"""`just dev` from the first command to Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.core.settings import AppSettings
from app.core.telemetry import TelemetrySettings
from app.settings import Settings
from devtools import dev
from tests.fixtures.process import ModuleProcess, reserve_port

_PROJECT = Path(__file__).parents[2]
_SECONDS = 120


@pytest.fixture
def environment() -> dict[str, str]:
    # Without any setting, so that every server is one of its own.
    rest = {name: value for name, value in os.environ.items() if name not in Settings.model_fields}
    return {**rest, "PYTHONPATH": str(_PROJECT), "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    return ["--data", str(tmp_path / "data")]


@dataclass(frozen=True)
class Ended:
    """How a command has ended and what it has printed."""

    returncode: int | None
    output: str


def run(arguments: list[str], folder: Path, environment: dict[str, str]) -> Ended:
    output = folder / "command.log"
    process = ModuleProcess(
        "devtools.dev", arguments, folder=folder, environment=environment, output=output
    )
    try:
        process.wait(_SECONDS)
    finally:
        process.kill()
    return Ended(process.returncode, output.read_text())


@contextmanager
def running(arguments: list[str], port: int, folder: Path, env: dict[str, str]) -> Iterator[str]:
    """`just dev` on a port, once it answers; its URL."""
    url = f"http://127.0.0.1:{port}"
    output = folder / f"output-{port}.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "devtools.dev", *arguments, "serve"],
            # Not the project, where a developer may have an `.env`.
            cwd=folder,
            env={**env, "PORT": str(port)},
            stdout=file,
            stderr=subprocess.STDOUT,
            # What a terminal's Ctrl-C reaches.
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + _SECONDS
        while True:
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            try:
                if httpx2.get(f"{url}/health/ready").status_code == 200:
                    break
            except httpx2.TransportError:
                time.sleep(0.1)
        assert f"{url}/docs" in output.read_text()
        yield url
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        process.wait(_SECONDS)


def wait_until_nobody_listens(port: int) -> None:
    deadline = time.monotonic() + _SECONDS
    with suppress(ConnectionRefusedError):
        while True:
            socket.create_connection(("127.0.0.1", port)).close()
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def port() -> int:
    return reserve_port()


def test_it_migrates_serves_and_ends_at_ctrl_c(
    arguments: list[str], port: int, tmp_path: Path, environment: dict[str, str]
) -> None:
    with running(arguments, port, tmp_path, environment) as url:
        assert httpx2.get(f"{url}/docs").status_code == 200
        # Whatever the service needs has been started and named.
        output = (tmp_path / f"output-{port}.log").read_text()
        for check, outcome in httpx2.get(f"{url}/health/ready").json()["checks"].items():
            assert outcome == "ok"
            assert f"\n{check.title()}  " in f"\n{output}"
        # While it runs, others use the same database.
        migrated = run([*arguments, "migrate"], tmp_path, environment)
        assert migrated.returncode == 0, migrated.output

    with pytest.raises(httpx2.TransportError):
        httpx2.get(f"{url}/health/live")
    for file in (tmp_path / "data").glob("*/port"):
        wait_until_nobody_listens(int(file.read_text()))


def test_a_port_in_use_is_named(
    arguments: list[str], tmp_path: Path, environment: dict[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run([*arguments, "serve"], tmp_path, {**environment, "PORT": str(port)})

    assert result.returncode == 1
    assert f"PORT={port}" in result.output


def test_an_invalid_environment_is_explained(
    arguments: list[str], tmp_path: Path, environment: dict[str, str]
) -> None:
    result = run(
        [*arguments, "migrate"], tmp_path, {**environment, "REQUEST_TIMEOUT_SECONDS": "soon"}
    )

    assert result.returncode == 1
    assert "REQUEST_TIMEOUT_SECONDS" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("variables", "exporter"),
    [
        ({}, "docs"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.invalid:4318"}, None),
        ({"OTEL_TRACES_EXPORTER": "none"}, None),
        ({"OTEL_SDK_DISABLED": True}, None),
        ({"ENVIRONMENT": "production"}, None),
    ],
)
def test_traces_are_kept_unless_the_settings_say_what_becomes_of_them(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, Any], exporter: str | None
) -> None:
    class Sections(AppSettings, TelemetrySettings):
        """Those that it looks at."""

    monkeypatch.setattr(dev, "load_settings", lambda: Sections(**variables))
    # Is undone in any case.
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "")
    monkeypatch.delenv("OTEL_TRACES_EXPORTER")

    dev._keep_traces()

    assert os.environ.get("OTEL_TRACES_EXPORTER") == exporter
