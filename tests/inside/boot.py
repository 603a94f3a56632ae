"""Boots the service as in production, with its workers, and calls every route that it has.

Run in the folder of a rendered service with its own Python; a line for each call goes to stdout.
"""

import json
import os
import secrets
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
from devtools import dev
from tests.fixtures.process import reserve_port

PATIENCE_SECONDS = 120
ORDER = {
    "customer_email": "ada@example.com",
    "lines": [{"sku": "TEA-250", "quantity": 1, "unit_price": "12.50"}],
}
PASSWORD = "bernoulli numbers by engine"  # noqa: S105
USER = {"email": "ada@example.com", "password": PASSWORD}
# What ends sessions or changes what others need comes last.
LAST = ("cancel", "password", "logout", "logout-all")
METHODS = ("get", "post", "patch", "put", "delete")


def main() -> None:
    with ExitStack() as stack:
        data = Path(stack.enter_context(TemporaryDirectory(prefix="boot-")))
        # The database server runs as another user when we are root.
        data.chmod(0o711)
        os.environ.update(SECRET_KEY=secrets.token_hex(32), SHUTDOWN_DRAIN_SECONDS="0")
        stack.enter_context(dev.development_environment(data / "dev"))
        if hasattr(dev, "_redis"):
            stack.enter_context(dev._redis(data / "dev"))
        port = reserve_port()
        if Path("gunicorn.conf.py").exists():
            start(stack, ["gunicorn", "--bind", f"127.0.0.1:{port}"])
        else:
            command = ["uvicorn", "app.main:create_app", "--factory", "--port", str(port)]
            start(stack, [*command, "--no-proxy-headers"])
        has_worker = Path("app/worker.py").exists()
        if has_worker:
            start(stack, ["app.worker"])
        client = stack.enter_context(
            httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_SECONDS)
        )
        wait_until_ready(client)
        call_every_route(client)
        if Path("app/realtime").exists():
            call_socket(client, port)
        if has_worker and Path("app/orders").exists():
            placed = client.post("/api/v1/orders", json=ORDER).headers["Location"]
            wait_for(lambda: client.get(placed).json()["status"] == "confirmed")


def start(stack: ExitStack, module: list[str]) -> None:
    process = subprocess.Popen([sys.executable, "-m", *module], stdout=subprocess.DEVNULL)
    stack.callback(end, process)


def end(process: subprocess.Popen[bytes]) -> None:
    alive = process.poll() is None
    process.terminate()
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    if not alive:
        raise SystemExit(f"{process.args} had ended before it was told to")


def wait_for(check) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not check():
        if time.monotonic() > deadline:
            raise SystemExit("it did not become so in time")
        time.sleep(0.1)


def wait_until_ready(client: httpx2.Client) -> None:
    def is_ready() -> bool:
        try:
            return client.get("/health/ready").status_code == 200
        except httpx2.TransportError:
            return False

    wait_for(is_ready)


def call_every_route(client: httpx2.Client) -> None:
    for path in ("/docs", "/metrics", "/health/live", "/health/ready"):
        assert call(client, "get", path) == 200, path
    paths = client.get("/openapi.json").json()["paths"]
    known = {}
    form = {"username": USER["email"], "password": PASSWORD}
    bodies = {
        "/api/v1/auth/token": {"data": form},
        "/api/v1/orders": {"json": ORDER},
        "/api/v1/users": {"json": USER},
        "/api/v1/users/me/password": {
            "json": {"current_password": PASSWORD, "new_password": PASSWORD[::-1]}
        },
    }
    if "/api/v1/users" in paths:
        assert client.post("/api/v1/users", **bodies["/api/v1/users"]).status_code == 201
        tokens = client.post("/api/v1/auth/token", data=form).json()
        client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
        other = client.post("/api/v1/auth/token", data=form).json()
        for name, token in (("refresh", tokens), ("logout", other)):
            bodies[f"/api/v1/auth/{name}"] = {"json": {"refresh_token": token["refresh_token"]}}
    if "/api/v1/orders" in paths:
        placed = client.post("/api/v1/orders", json=ORDER)
        assert placed.status_code == 201, placed.text
        known["order_id"] = placed.json()["id"]
    operations = [(p, m) for p, methods in paths.items() for m in METHODS if m in methods]
    operations.sort(key=lambda operation: turn(operation[0]))
    for path, method in operations:
        operation = paths[path][method]
        url = path
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "path":
                name = parameter["name"]
                url = url.replace(f"{{{name}}}", known.get(name, secrets.token_hex(16)))
        body = bodies.get(path, {"json": {}}) if method != "get" else {}
        status = call(client, method, url, **body)
        documented = operation["responses"]
        assert str(status) in documented, f"{method} {url}: {status} is none of {[*documented]}"
        # The user is there already.
        if path in bodies and path != "/api/v1/users":
            assert status < 400, f"{method} {url}: {status}"
    if "/api/v1/users" in paths:
        form["password"] = PASSWORD[::-1]
        tokens = client.post("/api/v1/auth/token", data=form).json()
        client.headers["Authorization"] = f"Bearer {tokens['access_token']}"


def turn(path: str) -> int:
    name = path.rpartition("/")[2]
    return LAST.index(name) if name in LAST else -1


def call(client: httpx2.Client, method: str, url: str, **arguments: object) -> int:
    # Streams do not end by themselves.
    with client.stream(method, url, **arguments) as response:
        if "event-stream" not in response.headers.get("content-type", ""):
            response.read()
    sys.stdout.write(f"{response.status_code} {method.upper()} {url}\n")
    assert response.status_code < 500, response.text
    return response.status_code


def call_socket(client: httpx2.Client, port: int) -> None:
    from websockets.sync.client import connect

    headers = {k: v for k, v in client.headers.items() if k.lower() == "authorization"}
    with connect(f"ws://127.0.0.1:{port}/api/v1/ws", additional_headers=headers) as socket:
        socket.send(json.dumps({"type": "ping"}))
        assert json.loads(socket.recv(timeout=PATIENCE_SECONDS)) == {"type": "pong"}
    sys.stdout.write("pong /api/v1/ws\n")


if __name__ == "__main__":
    main()
