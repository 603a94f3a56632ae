"""What the metrics cost a small route: a service with them, without, and with the shared folder.

Run it in a rendered service, with the environment that production needs, such as

    ENVIRONMENT=production DATABASE_URL=sqlite:///x.db uv run python .../benchmarks/metrics.py

The three run at once and take turns. What is compared is the processor's time that a request takes
of the server, which is what limits its throughput, in the quietest rounds: others on the machine
only ever add to it.
"""

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from fastapi import FastAPI

REQUESTS = 500
ROUNDS = 21
PIPELINED = 20
REQUEST = b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n"


def measured() -> FastAPI:
    """The service as it is, with a small route."""
    from app.main import create_app

    app = create_app()

    @app.get("/ping")
    async def ping() -> str:
        return "pong"

    # The first route is reached soonest, so that everything else weighs most.
    app.router.routes.insert(0, app.router.routes.pop())
    return app


def unmeasured() -> FastAPI:
    """The same, which counts no requests."""
    from app.core import exchange

    exchange.observe_request = lambda *_: None  # type: ignore[attr-defined]
    return measured()


class Server:
    """A uvicorn process, and a connection to it."""

    def __init__(self, factory: str, **environment: str) -> None:
        """Start it, and wait until it answers."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        folder = Path(__file__).parent
        command = [sys.executable, "-m", "uvicorn", f"metrics:{factory}", "--factory"]
        self._process = subprocess.Popen(
            [*command, "--port", str(port), "--no-access-log", "--no-proxy-headers"],
            env={**os.environ, **environment, "PYTHONPATH": f"{Path.cwd()}:{folder}"},
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                self._connection = socket.create_connection(("127.0.0.1", port))
                break
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise SystemExit(f"{factory} does not start") from None
                time.sleep(0.1)

    def microseconds(self, requests: int) -> float:
        """Send requests; the processor's time that each took of the server."""
        before = self._seconds()
        for _ in range(requests // PIPELINED):
            self._connection.sendall(REQUEST * PIPELINED)
            answers = b""
            while answers.count(b'"pong"') < PIPELINED:
                answers += self._connection.recv(65536)
        return (self._seconds() - before) * 1e6 / requests

    def _seconds(self) -> float:
        # Of the thread in which the event loop runs.
        return int(Path(f"/proc/{self._process.pid}/schedstat").read_text().split()[0]) / 1e9

    def stop(self) -> None:
        """End it."""
        self._connection.close()
        self._process.terminate()
        self._process.wait()


def main() -> None:
    """Take turns, and tell what remains of the throughput."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
        servers = {
            "without": Server("unmeasured"),
            "with metrics": Server("measured"),
            "shared folder": Server("measured", PROMETHEUS_MULTIPROC_DIR=folder),
        }
        for server in servers.values():
            stack.callback(server.stop)
            server.microseconds(REQUESTS)
        rounds = [
            {name: server.microseconds(REQUESTS) for name, server in servers.items()}
            for _ in range(ROUNDS)
        ]
    costs = {
        name: statistics.mean(sorted(each[name] for each in rounds)[: ROUNDS // 3])
        for name in servers
    }
    for name, cost in costs.items():
        share = costs["without"] / cost
        print(f"{name:14} {cost:7.1f} us a request   throughput {share:.3f}")


if __name__ == "__main__":
    main()
