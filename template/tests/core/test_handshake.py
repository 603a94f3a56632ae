"""WebSocket handshakes: refused as problem details, and left alone once they are accepted."""

import json
from typing import Any

import anyio
import httpx2
from fastapi import APIRouter, WebSocket
from starlette.types import Message, Scope

from tests.core.stack import build_app
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


async def connect(path: str, extensions: dict[str, Any]) -> list[Any]:
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
    }
    await build_app(router)(scope, receive, send)
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


async def test_a_server_that_cannot_answer_more_gets_the_close() -> None:
    [message] = await connect("/nowhere", {})
    assert message["type"] == "websocket.close"


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
            response = await client.get("/nowhere", headers=UPGRADE)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"] == "mine"
    assert response.json()["instance"] == "/nowhere"
