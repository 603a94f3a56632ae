"""WebSocket handshakes: refused as problem details, and left alone once they are accepted."""

import json
from typing import Any

import anyio
import httpx2
import pytest
from fastapi import APIRouter, Depends, WebSocket
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.types import Message, Scope
from structlog.testing import capture_logs

from app.core.errors import ForbiddenError
from app.core.rate_limit import MemoryRateLimiter, RateLimitSettings, rate_limit
from tests.core.stack import build_app, is_due_in
from tests.fixtures.server import Serve

UPGRADE = {
    "X-Request-ID": "mine",
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
EXTENSION: dict[str, Any] = {"websocket.http.response": {}}

router = APIRouter()


@router.websocket("/greeting")
async def greet(websocket: WebSocket) -> None:
    """Accept, say something, and close."""
    await websocket.accept()
    await websocket.send_text("hello")
    await websocket.close()


@router.websocket("/private")
async def refuse(websocket: WebSocket) -> None:
    """Refuse, as a guard does."""
    await websocket.close()


@router.websocket("/broken")
async def break_down(websocket: WebSocket) -> None:
    """Fail with something that clients must not see."""
    message = "password=hunter2"
    raise ValueError(message)


@router.websocket("/broken-later")
async def accept_and_break_down(websocket: WebSocket) -> None:
    """Fail when it is too late for an answer."""
    await websocket.accept()
    raise ValueError


@router.websocket("/database")
async def database_down(websocket: WebSocket) -> None:
    """Fail as SQLAlchemy does when no connection gets free."""
    raise PoolTimeoutError


@router.websocket("/forbidden")
async def forbid(websocket: WebSocket) -> None:
    """Fail with an error that has an answer."""
    raise ForbiddenError


@router.websocket("/limited", dependencies=[Depends(rate_limit(1, 60))])
async def greet_once(websocket: WebSocket) -> None:
    """Refuse whoever comes a second time."""
    await websocket.close()


@router.websocket("/undecided")
async def give_up(websocket: WebSocket) -> None:
    """End without a word, as when the client has gone."""


@router.websocket("/slow")
async def hesitate(websocket: WebSocket) -> None:
    """Be at work when the time is up."""
    is_due_in(0)
    await anyio.sleep(60)


@router.websocket("/long")
async def last(websocket: WebSocket) -> None:
    """Accept, and last for longer than the deadline of the tests."""
    is_due_in(0.01)
    # Nothing else has its turn before that.
    await websocket.accept()
    await anyio.sleep(0.05)
    await websocket.send_text("hello")


async def connect(
    path: str, extensions: dict[str, Any], state: dict[str, Any] | None = None
) -> list[Any]:
    """Ask for a WebSocket; what the application answers."""
    sent: list[Any] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "websocket",
        "path": path,
        "query_string": b"",
        "headers": [(b"x-request-id", b"mine")],
        "subprotocols": [],
        "extensions": extensions,
        "state": state or {},
    }
    await build_app(router, REQUEST_TIMEOUT_SECONDS=60)(scope, receive, send)
    return sent


async def test_a_websocket_that_no_route_offers_is_a_404() -> None:
    start, body = await connect("/nowhere", EXTENSION)
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 404)
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"x-request-id"] == b"mine"
    assert headers[b"x-content-type-options"] == b"nosniff"
    problem = json.loads(body["body"])
    assert (problem["status"], problem["request_id"]) == (404, "mine")


async def test_a_websocket_that_its_route_refuses_is_a_403() -> None:
    start, _ = await connect("/private", EXTENSION)
    assert start["status"] == 403


async def test_a_handshake_is_logged_when_it_is_decided() -> None:
    with capture_logs() as logs:
        await connect("/greeting", EXTENSION)
        await connect("/nowhere", EXTENSION)
        await connect("/forbidden", {})
    found = [
        (line["route"], line["path"], line["status"])
        for line in logs
        if line["event"] == "websocket"
    ]
    assert found == [
        ("/greeting", "/greeting", 101),
        ("unmatched", "/nowhere", 404),
        ("/forbidden", "/forbidden", 403),
    ]


async def test_a_client_that_hangs_up_before_the_decision_is_logged_as_such() -> None:
    with capture_logs() as logs:
        assert await connect("/undecided", EXTENSION) == []
    assert [line["status"] for line in logs if line["event"] == "websocket"] == [499]


async def test_a_server_that_cannot_answer_more_gets_the_close() -> None:
    [message] = await connect("/nowhere", {})
    assert message["type"] == "websocket.close"


@pytest.mark.parametrize(
    ("path", "status"), [("/broken", 500), ("/database", 503), ("/forbidden", 403), ("/slow", 504)]
)
async def test_what_fails_or_takes_too_long_is_a_problem(path: str, status: int) -> None:
    with anyio.fail_after(20):
        start, body = await connect(path, EXTENSION)
    assert start["status"] == status
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"x-request-id"] == b"mine"
    assert json.loads(body["body"])["request_id"] == "mine"
    assert b"hunter2" not in body["body"]
    # Where the server can say no more.
    [message] = await connect(path, {})
    assert message["type"] == "websocket.close"


async def test_what_fails_after_it_was_accepted_is_the_servers_to_end() -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        await connect("/broken-later", EXTENSION)


async def test_a_refusal_says_what_the_limit_is() -> None:
    state = {"rate_limiter": MemoryRateLimiter(), "settings": RateLimitSettings()}
    await connect("/limited", EXTENSION, state)
    start, _ = await connect("/limited", EXTENSION, state)
    headers = dict(start["headers"])
    assert start["status"] == 429
    assert headers[b"ratelimit-limit"] == b"1"
    assert headers[b"retry-after"]


async def test_the_deadline_is_that_of_the_handshake_alone() -> None:
    accepted, message = await connect("/long", EXTENSION)
    assert (accepted["type"], message["type"]) == ("websocket.accept", "websocket.send")


async def test_an_accepted_websocket_is_left_alone() -> None:
    messages = await connect("/greeting", EXTENSION)
    assert [message["type"] for message in messages] == [
        "websocket.accept",
        "websocket.send",
        "websocket.close",
    ]


async def test_a_served_upgrade_is_answered_with_problem_details(serve: Serve) -> None:
    async with serve() as server, httpx2.AsyncClient(base_url=server.url) as client:
        with anyio.fail_after(10):
            response = await client.get("/nowhere?token=hunter2", headers=UPGRADE)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == "mine"
    assert response.json()["instance"] == "/nowhere"
    logs = server.logs()
    # Or a flood of them would be one of errors in the log.
    assert "without completing handshake" not in logs
    assert "hunter2" not in logs
    assert logs.count("/nowhere") == 1
