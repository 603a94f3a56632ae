"""The HTTP stack under a real server: what clients and the log get when things fail."""

import signal
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx2
import pytest

from tests.core.stack import ORIGIN
from tests.fixtures.server import Serve, ServedProcess

APP = "tests.core.misbehaving:create_app"
PREFIX = "/api/v1/misbehaving"
# Of a busy machine.
PATIENCE_SECONDS = 30


async def soon(server: ServedProcess, **fields: Any) -> dict[str, Any]:
    """Wait for the one log line with these fields."""
    with anyio.fail_after(PATIENCE_SECONDS):
        # The log is another process's file: there is no event to wait for.
        while not (found := server.lines(**fields)):
            await anyio.sleep(0.02)
    [line] = found
    return line


async def test_what_goes_wrong_in_a_request_harms_no_other(serve: Serve) -> None:
    env = {
        "ALLOWED_ORIGINS": ORIGIN,
        "LOG_LEVEL": "debug",
        "MAX_BODY_SIZE": "5000",
        "TRUSTED_PROXIES": "127.0.0.1",
    }
    async with (
        # One for all of them: they must not get in each other's way.
        serve(app=APP, env=env, args=["--no-proxy-headers"]) as server,
        httpx2.AsyncClient(base_url=server.url) as client,
    ):
        await _a_500_is_traced_once_under_the_id_that_the_client_got(server, client)
        await _an_answer_that_fails_halfway_is_visibly_cut(server, client)
        await _a_body_without_a_length_is_stopped_at_the_limit(client)
        await _a_client_that_hangs_up_leaves_a_line(server)
        await _a_body_that_stalls_is_answered_and_the_connection_closed(server)
        await _the_caller_cannot_choose_their_address(server, client)
        await _the_servers_own_lines_look_like_ours(server)
        # Two requests have failed, and nothing else of this is an error.
        assert server.logs().count("Traceback") == 2


async def _a_500_is_traced_once_under_the_id_that_the_client_got(
    server: ServedProcess, client: httpx2.AsyncClient
) -> None:
    headers = {"X-Request-ID": "mine", "Origin": ORIGIN}
    response = await client.get(f"{PREFIX}/broken", headers=headers)
    # On the same connection, which survives the error.
    after = await client.get("/nowhere")
    assert (response.status_code, after.status_code) == (500, 404)
    assert response.headers["x-request-id"] == "mine"
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert "hunter2" not in response.text
    failure = await soon(server, event="unhandled_exception")
    assert failure["request_id"] == "mine"
    assert failure["exception"].endswith("ValueError: password=hunter2")
    line = await soon(server, event="request", path="/nowhere")
    assert line["request_id"] == after.headers["x-request-id"]
    assert "leak" not in line


async def _an_answer_that_fails_halfway_is_visibly_cut(
    server: ServedProcess, client: httpx2.AsyncClient
) -> None:
    with pytest.raises(httpx2.RemoteProtocolError):
        await client.get(f"{PREFIX}/cut", headers={"Accept-Encoding": "identity"})
    await soon(server, event="request_failed_after_response_started")
    line = await soon(server, event="request", path=f"{PREFIX}/cut")
    assert (line["status"], line["aborted"]) == (200, True)


async def _a_body_without_a_length_is_stopped_at_the_limit(client: httpx2.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 1000

    response = await client.post(f"{PREFIX}/upload", content=chunks())
    assert response.status_code == 413
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["request_id"] == response.headers["x-request-id"]


async def _a_client_that_hangs_up_leaves_a_line(server: ServedProcess) -> None:
    stream = await connect(server)
    await stream.send(
        f"POST {PREFIX}/wait HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx".encode()
    )
    await soon(server, event="waiting")
    await stream.aclose()
    line = await soon(server, event="request", path=f"{PREFIX}/wait")
    assert line["status"] == 499


async def _a_body_that_stalls_is_answered_and_the_connection_closed(server: ServedProcess) -> None:
    async with await connect(server) as stream:
        await stream.send(
            f"POST {PREFIX}/overdue HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx".encode()
        )
        answer = b""
        with anyio.fail_after(PATIENCE_SECONDS):
            async for chunk in stream:
                answer += chunk
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in answer


async def _the_caller_cannot_choose_their_address(
    server: ServedProcess, client: httpx2.AsyncClient
) -> None:
    headers = {"X-Forwarded-For": "192.0.2.66, 198.51.100.1"}
    response = await client.get(f"{PREFIX}/caller", headers=headers)
    assert response.json() == "198.51.100.1"
    line = await soon(server, event="request", path=f"{PREFIX}/caller")
    assert line["client"] == "198.51.100.1"


async def _the_servers_own_lines_look_like_ours(server: ServedProcess) -> None:
    started = await soon(server, event="Application startup complete.")
    assert (started["logger"], started["level"]) == ("uvicorn.error", "info")
    # Starting it has taken a probe or more.
    probe = server.lines(event="request", path="/health/live")[0]
    assert (probe["level"], probe["route"]) == ("debug", "/health/live")


@pytest.mark.parametrize(
    "limited",
    [
        {"args": ["--timeout-graceful-shutdown", "1"]},
        {"env": {"SHUTDOWN_TIMEOUT_SECONDS": "0.2"}},
    ],
    ids=["by-argument", "by-setting"],
)
async def test_a_request_that_outlasts_the_shutdown_is_told_to_come_back(
    serve: Serve, limited: dict[str, Any]
) -> None:
    async with serve(app=APP, **limited) as server:
        # Probes are logged for debugging only.
        assert not server.lines(event="request")
        stream = await connect(server)
        async with stream:
            await stream.send(f"GET {PREFIX}/sleep HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await soon(server, event="asleep")
            server.process.send_signal(signal.SIGTERM)
            with anyio.fail_after(PATIENCE_SECONDS):
                answer = await stream.receive()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"x-request-id: " in answer
        await server.wait()


async def test_a_client_that_never_reads_is_dropped(serve: Serve) -> None:
    async def stall(path: str) -> None:
        stream = await connect(server)
        async with stream:
            await stream.send(f"GET {PREFIX}/{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await soon(server, event="request", path=f"{PREFIX}/{path}")
            # Whatever is sent to a connection that is there no longer is refused by the system.
            with pytest.raises(anyio.BrokenResourceError):
                while True:
                    await stream.send(b"\r\n")
                    await anyio.sleep(0.1)

    async with serve(app=APP, env={"SEND_TIMEOUT_SECONDS": "0.3"}) as server:
        with anyio.fail_after(2 * PATIENCE_SECONDS):
            async with anyio.create_task_group() as clients:
                # In the middle of an answer, and after its end.
                clients.start_soon(stall, "endless")
                clients.start_soon(stall, "large")
        assert "Traceback" not in server.logs()


async def connect(server: ServedProcess) -> anyio.abc.SocketStream:
    """A bare connection, for clients that httpx2 cannot play."""
    return await anyio.connect_tcp("127.0.0.1", httpx2.URL(server.url).port or 80)
