"""What channels hold and cost: idle connections, a broadcast, one client that stops reading, SIGTERM.

Run it inside a rendered service with `use_websockets`, without `use_jwt`, on a machine that does nothing else; each
connection needs a file descriptor here and in the service (`ulimit -n 20000`):

    DATABASE_URL=sqlite:///bench.db uv run python .../benchmarks/channels.py --idle 5000 --receivers 1000

It starts the service itself, with a route that publishes, and one that sends to all receivers the way that is usually
shown: `gather` of `send_json`.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

SERVICE = """
import asyncio
import time
from typing import ClassVar

from fastapi import APIRouter, WebSocket

from app import feeds
from app.core.channels import Channel, Message
from app.main import create_app as create_service
from app.realtime.dependencies import HubDep


class Tick(Message):
    name: ClassVar[str] = "tick"
    at: float
    text: str


TICKS = Channel("ticks", messages=(Tick,))
naive = set()
router = APIRouter()


@router.post("/publish")
async def publish(hub: HubDep, times: int = 1, length: int = 100) -> float:
    began = time.perf_counter()
    for _ in range(times):
        hub.publish(TICKS, Tick(at=time.time(), text="x" * length))
        # Until all writers have had their turn.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    return time.perf_counter() - began


@router.post("/naive")
async def send_to_all(times: int = 1, length: int = 100) -> float:
    began = time.perf_counter()
    for _ in range(times):
        frame = {"type": "event", "channel": "ticks", "event": "tick",
                 "data": {"at": time.time(), "text": "x" * length}}
        await asyncio.gather(*(websocket.send_json(frame) for websocket in naive))
    return time.perf_counter() - began


@router.websocket("/naive")
async def accept(websocket: WebSocket) -> None:
    await websocket.accept()
    naive.add(websocket)
    try:
        async for _ in websocket.iter_text():
            pass
    finally:
        naive.discard(websocket)


def create_app():
    found = feeds.find_channels
    import app.lifespan
    app.lifespan.find_channels = lambda: {**found(), "ticks": TICKS}
    service = create_service()
    service.include_router(router)
    return service
"""


def start(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start the service on one uvicorn worker."""
    (folder / "bench_service.py").write_text(SERVICE)
    environment = {
        **os.environ,
        "RATE_LIMIT_REQUESTS": "1000000",
        "REALTIME_QUEUE_SIZE": "50",
        "LOG_LEVEL": "CRITICAL",
        "PYTHONPATH": f"{folder}{os.pathsep}.",
    }
    command = [sys.executable, "-m", "uvicorn", "bench_service:create_app", "--factory"]
    arguments = ["--port", str(port), "--no-access-log", "--log-level", "warning"]
    return subprocess.Popen([*command, *arguments], env=environment)


def post(port: int, path: str) -> float:
    """Send a POST; the seconds that it answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method="POST")
    with urllib.request.urlopen(request, timeout=120) as response:
        return float(response.read())


def memory(pid: int) -> float:
    """The resident memory of a process, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


async def open_all(url: str, count: int, *, subscribe: bool) -> list[ClientConnection]:
    """Open connections, fifty at a time."""
    opened: list[ClientConnection] = []
    for begin in range(0, count, 50):
        opened += await asyncio.gather(
            *(
                connect(url, compression=None, open_timeout=60, ping_interval=None)
                for _ in range(min(50, count - begin))
            )
        )
    if subscribe:
        for client in opened:
            await client.send('{"type": "subscribe", "channel": "ticks"}')
        for client in opened:
            await client.recv()
    return opened


async def read(client: ClientConnection, count: int, delays: list[float]) -> None:
    """Read so many events; the seconds that each took."""
    for _ in range(count):
        frame = json.loads(await client.recv())
        delays.append(time.time() - frame["data"]["at"])


async def broadcast(port: int, path: str, clients: list[ClientConnection], times: int) -> float:
    """Messages delivered per second of the service's time, read by everybody."""
    delays: list[float] = []
    readers = [asyncio.create_task(read(client, times, delays)) for client in clients]
    seconds = await asyncio.to_thread(post, port, f"{path}?times={times}")
    await asyncio.gather(*readers)
    return times * len(clients) / seconds


async def p99(port: int, clients: list[ClientConnection], rounds: int) -> float:
    """The 99th percentile of the time to delivery, in milliseconds."""
    delays: list[float] = []
    readers = [asyncio.create_task(read(client, rounds, delays)) for client in clients]
    for _ in range(rounds):
        await asyncio.to_thread(post, port, "/publish?length=100000")
        await asyncio.sleep(0.02)
    await asyncio.gather(*readers)
    return statistics.quantiles(delays, n=100)[98] * 1000


async def run(options: argparse.Namespace, port: int, pid: int) -> None:
    """Measure one after the other."""
    url = f"ws://127.0.0.1:{port}"
    channels, naive = f"{url}/api/v1/ws", f"{url}/naive"

    before = memory(pid)
    idle = await open_all(channels, options.idle, subscribe=False)
    print(f"{len(idle)} idle connections: {memory(pid) - before:.0f} MiB more")
    for client in idle:
        client.transport.abort()
    await asyncio.sleep(2)

    others = await open_all(naive, options.receivers, subscribe=False)
    slow = [await broadcast(port, "/naive", others, options.times) for _ in range(3)]
    for client in others:
        client.transport.abort()
    await asyncio.sleep(2)
    clients = await open_all(channels, options.receivers, subscribe=True)
    fast = [await broadcast(port, "/publish", clients, options.times) for _ in range(3)]
    ratio = statistics.median(fast) / statistics.median(slow)
    print(f"gather of send_json: {statistics.median(slow):,.0f} messages a second")
    print(f"publish:             {statistics.median(fast):,.0f} messages a second, {ratio:.1f}x")

    some = clients[:30]
    for client in clients[30:]:
        client.transport.abort()
    await asyncio.sleep(2)
    alone = await p99(port, some, 100)
    stalled = (await open_all(channels, 1, subscribe=True))[0]
    stalled.transport.pause_reading()
    before = memory(pid)
    disturbed = await p99(port, some, 250)
    print(f"p99 of a delivery: {alone:.1f} ms; with one that does not read {disturbed:.1f} ms")
    stalled.transport.resume_reading()
    with suppress(ConnectionClosed):
        while True:
            await stalled.recv()
    print(f"memory meanwhile: {memory(pid) - before:+.0f} MiB; it was closed: {stalled.close_code}")

    everybody = await open_all(channels, options.receivers, subscribe=False)
    began = time.perf_counter()
    os.kill(pid, signal.SIGTERM)
    await asyncio.gather(*(client.wait_closed() for client in everybody))
    codes = {client.close_code for client in everybody}
    print(f"SIGTERM with {len(everybody)}: {codes} within {time.perf_counter() - began:.1f} s")


def main() -> None:
    """Start the service, measure, and say how it ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--idle", type=int, default=5000)
    parser.add_argument("--receivers", type=int, default=1000)
    parser.add_argument("--times", type=int, default=20)
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        process = start(Path(folder), port)
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            asyncio.run(run(options, port, process.pid))
            print(f"exit status: {process.wait(60)}")
        finally:
            process.kill()


if __name__ == "__main__":
    main()
