"""Rolling restarts behind nginx under constant load; test_rolling.py copies it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import httpx2
import pytest
from app import main
from dotenv import dotenv_values
from fastapi import FastAPI
from tests.fixtures.process import reserve_port

DEPLOY = Path("deploy").resolve()
RESTARTS = int(os.environ.get("RESTARTS", "2"))
PATIENCE_SECONDS = 300
SLOW_SECONDS = 2.0
CLIENTS = 2
ORDER = {
    "customer_email": "ada@example.com",
    "lines": [{"sku": "TEA-250", "quantity": 1, "unit_price": "12.50"}],
}


def create_app() -> FastAPI:
    """Build the service with one more route."""
    app = main.create_app()

    @app.get("/slow")
    async def slow() -> str:
        await anyio.sleep(SLOW_SECONDS)
        return "late"

    return app


class Replica:
    """A process that runs the image's command with the settings of deploy/kubernetes."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.port = reserve_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = folder / f"{self.port}.log"
        [command] = re.findall(r"^CMD (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
        program, *arguments = [
            "tests.test_rolling:create_app" if part == "app.main:create_app" else part
            for part in json.loads(command)
        ]
        if program == "gunicorn":
            arguments += ["--bind", f"127.0.0.1:{self.port}", "tests.test_rolling:create_app()"]
        else:
            # The last one counts.
            arguments += ["--host", "127.0.0.1", "--port", str(self.port)]
        settings = dotenv_values(DEPLOY / "kubernetes" / "base" / "settings.env")
        # Kubernetes sees the exit code of process 1.
        isolated = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(isolated if can_isolate() else []),
                    str(Path(sys.executable).with_name(program)),
                    *arguments,
                ],
                env={
                    **os.environ,
                    **{name: value for name, value in settings.items() if value},
                    "DATABASE_URL": database_url,
                    "RATE_LIMIT_REQUESTS": "1000000",
                    "WEB_CONCURRENCY": "1",
                },
                stdout=output,
                stderr=output,
            )

    async def status(self, path: str) -> int:
        async with httpx2.AsyncClient(base_url=self.url, timeout=PATIENCE_SECONDS) as client:
            return (await client.get(path)).status_code

    async def until(self, path: str, status: int) -> None:
        with anyio.fail_after(PATIENCE_SECONDS):
            while True:
                with suppress(httpx2.TransportError):
                    if await self.status(path) == status:
                        return
                assert self.process.poll() is None, self.output.read_text()
                await anyio.sleep(0.1)

    def terminate(self) -> None:
        """What a kubelet does; unshare itself would not pass the signal on."""
        pid = self.process.pid
        if can_isolate():
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            pid = int(children[0])
        os.kill(pid, signal.SIGTERM)

    async def wait(self) -> int:
        with anyio.fail_after(PATIENCE_SECONDS):
            while (code := self.process.poll()) is None:
                await anyio.sleep(0.05)
        return code


def can_isolate() -> bool:
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class Nginx:
    """The shipped configuration, with ports of the test's."""

    def __init__(self, folder: Path) -> None:
        self.port = reserve_port()
        self._folder = folder
        self._conf = folder / "nginx.conf"
        self._process: subprocess.Popen[bytes] | None = None

    def route(self, *replicas: Replica) -> None:
        """Send requests to these, as the endpoints of a Service are what is ready."""
        text = (DEPLOY / "nginx.conf").read_text()
        servers = "\n".join(
            f"server 127.0.0.1:{r.port} max_fails=1 fail_timeout=2s;" for r in replicas
        )
        text, upstreams = re.subn(r"server 127\.0\.0\.1:8000 [^;]*;", servers, text)
        text, listeners = re.subn(r"listen 80;", f"listen 127.0.0.1:{self.port};", text)
        assert upstreams == listeners == 1
        self._conf.write_text(text)
        if self._process is None:
            self._process = subprocess.Popen(self.command(), stderr=subprocess.DEVNULL)
        else:
            self._process.send_signal(signal.SIGHUP)

    def command(self) -> list[str]:
        own = f"daemon off; pid {self._folder}/nginx.pid; error_log {self._folder}/error.log;"
        return [nginx(), "-p", str(self._folder), "-c", str(self._conf), "-g", own]

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


def nginx() -> str:
    found = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    assert found, "test_rolling.py has looked for it"
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for file in tmp_path.glob("*.log"):
        tail = "\n".join(file.read_text().splitlines()[-15:])
        sys.stderr.write(f"--- {file.name}\n{tail}\n")


@pytest.fixture
def proxy(folder: Path) -> Iterator[Nginx]:
    proxy = Nginx(folder)
    yield proxy
    proxy.stop()


@pytest.fixture
def start(folder: Path, database_url: str) -> Iterator[Callable[[], Replica]]:
    started: list[Replica] = []

    def run() -> Replica:
        started.append(Replica(folder, database_url))
        return started[-1]

    yield run
    for replica in started:
        replica.process.kill()
        replica.process.wait()


async def test_no_request_fails_while_replicas_are_replaced(
    proxy: Nginx, start: Callable[[], Replica]
) -> None:
    replicas = [start(), start()]
    for replica in replicas:
        await replica.until("/health/ready", 200)
    proxy.route(*replicas)
    outcomes: Counter[str] = Counter()
    url = f"http://127.0.0.1:{proxy.port}"
    with anyio.fail_after(PATIENCE_SECONDS):
        while True:
            with suppress(httpx2.TransportError):
                async with httpx2.AsyncClient(base_url=url) as client:
                    assert (await client.get("/metrics")).status_code == 404
                    break
            await anyio.sleep(0.05)

    async def load() -> None:
        # A connection for each: nginx closes those that it has kept, when it is told of new routes.
        async with httpx2.AsyncClient(
            base_url=url, timeout=PATIENCE_SECONDS, headers={"Connection": "close"}
        ) as client:
            while True:
                for method, body in (("POST", ORDER), ("GET", None)):
                    try:
                        answer = await client.request(method, "/api/v1/orders", json=body)
                    except httpx2.TransportError as error:
                        outcomes[f"{method} {error!r}"] += 1
                    else:
                        outcomes[f"{method} {answer.status_code}"] += 1
                    await anyio.sleep(0.05)

    async def one_in_flight(replica: Replica) -> None:
        outcomes[f"slow {await replica.status('/slow')}"] += 1

    codes = Counter[int]()
    async with anyio.create_task_group() as clients:
        for _ in range(CLIENTS):
            clients.start_soon(load)
        for _ in range(RESTARTS):
            # As a Deployment with maxSurge 1 and maxUnavailable 0.
            new = start()
            await new.until("/health/ready", 200)
            old, replicas = replicas[0], [*replicas[1:], new]
            async with anyio.create_task_group() as in_flight:
                in_flight.start_soon(one_in_flight, old)
                await anyio.sleep(SLOW_SECONDS / 4)
                old.terminate()
                # It still accepts, and says that it should not be sent any more.
                await old.until("/health/ready", 503)
                proxy.route(*replicas)
                codes[await old.wait()] += 1
        clients.cancel_scope.cancel()
    sys.stdout.write(f"{dict(outcomes)}, exit codes {dict(codes)}\n")
    assert outcomes.keys() == {"POST 201", "GET 200", "slow 200"}, outcomes
    assert outcomes["slow 200"] == RESTARTS
    assert codes == {0 if can_isolate() else -signal.SIGTERM: RESTARTS}


def test_nginx_accepts_the_configuration_as_it_is_shipped(tmp_path: Path) -> None:
    own = f"pid {tmp_path}/nginx.pid; error_log stderr;"
    command = [nginx(), "-t", "-c", str(DEPLOY / "nginx.conf"), "-g", own]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "warn" not in checked.stderr
