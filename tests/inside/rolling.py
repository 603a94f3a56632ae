"""Rolling restarts of service and worker behind nginx under load; test_rolling.py copies it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import anyio
import httpx2
import pytest
from app import main
from app.core.heartbeat import find_problem
from dotenv import dotenv_values
from fastapi import FastAPI
from tests.fixtures.process import reserve_port
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

DEPLOY = Path("deploy").resolve()
RESTARTS = int(os.environ.get("RESTARTS", "2"))
PATIENCE_SECONDS = 300
SLOW_SECONDS = 2.0
CLIENTS = 2
ORDER = {
    "customer_email": "ada@example.com",
    # Receipts that take a while, so that jobs are in hand when a worker is told to end.
    "lines": [{"sku": f"TEA-{n}", "quantity": 1, "unit_price": "12.50"} for n in range(20)],
}


def create_app() -> FastAPI:
    """Build the service with one more route."""
    app = main.create_app()

    @app.get("/slow")
    async def slow() -> str:
        await anyio.sleep(SLOW_SECONDS)
        return "late"

    return app


class Pod(ABC):
    """A process that runs with the settings of deploy/kubernetes.

    Args:
        folder: Where it keeps its files.
        command: What its container runs.
        env: Its settings beyond those.
    """

    def __init__(self, folder: Path, command: Sequence[str], env: Mapping[str, str]) -> None:
        settings = dotenv_values(DEPLOY / "kubernetes" / "base" / "settings.env")
        # Kubernetes sees the exit code of process 1.
        isolated = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self.output = folder / "output.log"
        folder.mkdir()
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(isolated if can_isolate() else []),
                    str(Path(sys.executable).with_name(command[0])),
                    *command[1:],
                ],
                env={
                    **os.environ,
                    **{name: value for name, value in settings.items() if value},
                    "RATE_LIMIT_REQUESTS": "1000000",
                    **env,
                },
                stdout=output,
                stderr=output,
            )

    @abstractmethod
    async def is_ready(self) -> bool:
        """What its readiness probe says."""

    async def until(self, *, ready: bool) -> None:
        with anyio.fail_after(PATIENCE_SECONDS):
            while await self.is_ready() != ready:
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


class Replica(Pod):
    """One that serves."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.port = reserve_port()
        self.url = f"http://127.0.0.1:{self.port}"
        [command] = re.findall(r"^CMD (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
        arguments = [
            "tests.test_rolling:create_app" if part == "app.main:create_app" else part
            for part in json.loads(command)
        ]
        if arguments[0] == "gunicorn":
            arguments += ["--bind", f"127.0.0.1:{self.port}", "tests.test_rolling:create_app()"]
        else:
            # The last one counts.
            arguments += ["--host", "127.0.0.1", "--port", str(self.port)]
        super().__init__(folder, arguments, env)

    async def status(self, path: str) -> int:
        async with httpx2.AsyncClient(base_url=self.url, timeout=PATIENCE_SECONDS) as client:
            return (await client.get(path)).status_code

    async def is_ready(self) -> bool:
        with suppress(httpx2.TransportError):
            status = await self.status("/health/ready")
            # It still accepts, and says that it should not be sent any more.
            assert status in {200, 503}
            return status == 200
        assert "draining" not in self.output.read_text()
        return False


class Worker(Pod):
    """One that runs jobs."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self._heartbeat = folder / "heartbeat.json"
        settings = {
            "WORKER_METRICS_PORT": str(reserve_port()),
            "WORKER_HEARTBEAT_FILE": str(self._heartbeat),
        }
        super().__init__(folder, ["python", "-m", "app.worker"], {**env, **settings})

    async def is_ready(self) -> bool:
        return self._heartbeat.exists() and find_problem(self._heartbeat, ready=True) is None

    def done(self) -> Iterator[str]:
        """The ids of the orders' jobs that it has done; others come with the clock."""
        for line in self.output.read_text().splitlines():
            with suppress(ValueError):
                entry = json.loads(line)
                if entry["event"] == "job_done" and entry["job"] == "orders.confirm":
                    yield entry["job_id"]


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
    for file in sorted(tmp_path.glob("*/output.log")):
        tail = "\n".join(file.read_text().splitlines()[-3:])
        sys.stderr.write(f"--- {file.parent.name}\n{tail}\n")


@pytest.fixture
def proxy(folder: Path) -> Iterator[Nginx]:
    proxy = Nginx(folder)
    yield proxy
    proxy.stop()


P = TypeVar("P", bound=Pod)


class Namespace:
    """What runs, and what it runs with."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self._folder = folder
        self._env = env
        self.pods: list[Pod] = []

    def start(self, kind: Callable[[Path, Mapping[str, str]], P]) -> P:
        pod = kind(self._folder / f"pod-{len(self.pods):02}", self._env)
        self.pods.append(pod)
        return pod


@pytest.fixture
def namespace(folder: Path, database_url: str, redis_url: str) -> Iterator[Namespace]:
    namespace = Namespace(folder, {"DATABASE_URL": database_url, "REDIS_URL": redis_url})
    yield namespace
    for pod in namespace.pods:
        pod.process.kill()
        pod.process.wait()


class Load:
    """Clients of the service, and what they have seen."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.outcomes: Counter[str] = Counter()
        self.placed: list[str] = []
        self.heard: list[set[str]] = []

    def client(self) -> httpx2.AsyncClient:
        # A connection for each request: nginx closes those that it has kept, when it is told of
        # new routes.
        headers = {"Connection": "close"}
        return httpx2.AsyncClient(base_url=self._url, timeout=PATIENCE_SECONDS, headers=headers)

    async def requests(self) -> None:
        async with self.client() as client:
            while True:
                await self._request(client, "POST", ORDER)
                await self._request(client, "GET")
                await anyio.sleep(0.25)

    async def place(self) -> str:
        async with self.client() as client:
            await self._request(client, "POST", ORDER)
        return self.placed[-1]

    async def listen(self) -> None:
        """Hear of orders; connect again whenever the socket is closed."""
        heard: set[str] = set()
        self.heard.append(heard)
        url = self._url.replace("http", "ws", 1) + "/api/v1/ws"
        while True:
            try:
                async with connect(url, open_timeout=PATIENCE_SECONDS) as websocket:
                    await websocket.send(json.dumps({"type": "subscribe", "channel": "orders"}))
                    while True:
                        frame = json.loads(await websocket.recv())
                        if frame["type"] == "event":
                            heard.add(frame["data"]["order_id"])
            except ConnectionClosed as end:
                self.outcomes[f"socket {end.rcvd and end.rcvd.code}"] += 1
            except (InvalidHandshake, OSError) as error:
                self.outcomes[f"socket {error!r}"] += 1
                await anyio.sleep(0.1)

    async def _request(self, client: httpx2.AsyncClient, method: str, body: Any = None) -> None:
        try:
            response = await client.request(method, "/api/v1/orders", json=body)
        except httpx2.TransportError as error:
            self.outcomes[f"{method} {error!r}"] += 1
            return
        self.outcomes[f"{method} {response.status_code}"] += 1
        if response.status_code == 201:
            self.placed.append(response.json()["id"])


async def test_nothing_is_lost_while_everything_is_replaced(
    proxy: Nginx, namespace: Namespace
) -> None:
    replicas = [namespace.start(Replica), namespace.start(Replica)]
    worker = namespace.start(Worker)
    for pod in namespace.pods:
        await pod.until(ready=True)
    proxy.route(*replicas)
    load = Load(f"http://127.0.0.1:{proxy.port}")
    with anyio.fail_after(PATIENCE_SECONDS):
        while True:
            with suppress(httpx2.TransportError):
                async with load.client() as client:
                    assert (await client.get("/metrics")).status_code == 404
                    break
            await anyio.sleep(0.05)

    async def one_in_flight(replica: Replica) -> None:
        load.outcomes[f"slow {await replica.status('/slow')}"] += 1

    codes: Counter[int] = Counter()
    async with anyio.create_task_group() as clients:
        for _ in range(CLIENTS):
            clients.start_soon(load.requests)
            clients.start_soon(load.listen)
        for _ in range(RESTARTS):
            # As Deployments with maxSurge 1 and maxUnavailable 0.
            old, old_worker = replicas[0], worker
            replicas, worker = [replicas[1], namespace.start(Replica)], namespace.start(Worker)
            for new in (replicas[1], worker):
                await new.until(ready=True)
            async with anyio.create_task_group() as in_flight:
                in_flight.start_soon(one_in_flight, old)
                await anyio.sleep(SLOW_SECONDS / 4)
                old.terminate()
                old_worker.terminate()
                await old.until(ready=False)
                proxy.route(*replicas)
                codes[await old.wait()] += 1
                codes[await old_worker.wait()] += 1
        with anyio.fail_after(PATIENCE_SECONDS):
            while True:
                last = await load.place()
                await anyio.sleep(1)
                if all(last in heard for heard in load.heard):
                    break
        clients.cancel_scope.cancel()

    workers = [pod for pod in namespace.pods if isinstance(pod, Worker)]
    with anyio.fail_after(PATIENCE_SECONDS):
        while True:
            done = Counter(chain.from_iterable(pod.done() for pod in workers))
            if len(done) >= len(load.placed):
                break
            await anyio.sleep(0.2)
    done_by = [sum(1 for _ in pod.done()) for pod in workers]
    sys.stdout.write(f"{dict(load.outcomes)}, exit codes {dict(codes)}, jobs {done_by}\n")
    assert load.outcomes.keys() == {"POST 201", "GET 200", "slow 200", "socket 1012"}
    assert load.outcomes["slow 200"] == RESTARTS
    assert codes[0] >= RESTARTS
    ended = 0 if can_isolate() else -signal.SIGTERM
    assert codes == Counter([0, ended] * RESTARTS)
    # Whoever placed an order just when the load ended has not seen its id.
    assert len(load.placed) <= len(done) <= len(load.placed) + CLIENTS
    assert set(done.values()) == {1}
    assert min(done_by) > 0


def test_nginx_accepts_the_configuration_as_it_is_shipped(tmp_path: Path) -> None:
    own = f"pid {tmp_path}/nginx.pid; error_log stderr;"
    command = [nginx(), "-t", "-c", str(DEPLOY / "nginx.conf"), "-g", own]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "warn" not in checked.stderr
