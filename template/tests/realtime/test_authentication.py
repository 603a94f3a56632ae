"""Connections of users: only with a token that holds, and for no longer than it does."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import httpx2
import pytest
from starlette.requests import HTTPConnection
from websockets.exceptions import InvalidStatus

from app.core.access_tokens import InvalidTokenError
from app.core.background import BackgroundRunner
from app.core.database import Database
from app.core.events import EventBus
from app.core.security import Identity, Role
from app.core.settings import AppSettings
from app.realtime.authentication import _ACCESS, RealtimeAuthSettings, SocketSessions, _UserChanged
from app.realtime.hub import Hub
from app.realtime.limits import RealtimeSettings
from app.users.models import User
from tests.fixtures.authentication import Account, bearer
from tests.fixtures.server import ServedProcess
from tests.realtime.client import PATIENCE_SECONDS, open_client
from tests.realtime.conftest import ServeChannels, publish


async def refusal(server: ServedProcess, headers: dict[str, str], **options: Any) -> int:
    """The status with which a handshake is refused, as a problem."""
    with pytest.raises(InvalidStatus) as refused:
        async with open_client(server, headers, **options):
            pass
    response = refused.value.response
    assert response.headers["content-type"] == "application/problem+json"
    assert json.loads(response.body)["status"] == response.status_code
    return response.status_code


async def test_a_handshake_needs_a_token_that_holds(
    serve_channels: ServeChannels, user: Account, other_user: Account
) -> None:
    token = user.tokens.access_token
    async with serve_channels(env={"REALTIME_MAX_CONNECTIONS_PER_USER": "2"}) as server:
        assert await refusal(server, {}) == 401
        assert await refusal(server, bearer("made-up")) == 401
        assert await refusal(server, bearer(f"{token[:-8]}AAAAAAAA")) == 401
        assert await refusal(server, {}, subprotocols=["bearer", "made-up"]) == 401
        assert await refusal(server, {}, subprotocols=["bearer"]) == 401
        async with httpx2.AsyncClient(base_url=server.url) as http:
            answer = await http.get("/api/v1/events", params={"channel": "news"})
            assert answer.status_code == 401
        async with (
            open_client(server, user.headers) as by_header,
            open_client(server, subprotocols=["bearer", token]) as by_subprotocol,
        ):
            assert by_subprotocol.raw.subprotocol == "bearer"
            # A limit of each user.
            assert await refusal(server, user.headers) == 429
            async with open_client(server, other_user.headers) as other:
                for client in (by_header, by_subprotocol, other):
                    await client.subscribe("letters")
                await publish(server, "letters", to=str(user.id))
                for client in (by_header, by_subprotocol):
                    assert (await client.receive())["channel"] == "letters"
                assert await other.ask(type="ping") == {"type": "pong"}
        assert token not in server.logs()


async def test_a_connection_ends_with_its_token(
    serve_channels: ServeChannels, user: Account
) -> None:
    # 3 seconds.
    env = {"ACCESS_TOKEN_EXPIRE_MINUTES": "0.05"}
    async with (
        serve_channels(env=env) as server,
        httpx2.AsyncClient(base_url=server.url) as http,
    ):
        body = {"refresh_token": user.tokens.refresh_token}
        tokens = (await http.post("/api/v1/auth/refresh", json=body)).raise_for_status().json()
        async with open_client(server, bearer(tokens["access_token"])) as client:
            assert await client.closed() == (1008, "the token has expired")
        stream = http.stream(
            "GET",
            "/api/v1/events",
            params={"channel": "news"},
            headers=bearer(tokens["access_token"]),
        )
        async with stream as response:
            with anyio.fail_after(PATIENCE_SECONDS):
                assert "data:" not in (await response.aread()).decode()


async def test_a_connection_ends_with_its_session(
    serve_channels: ServeChannels, user: Account, other_user: Account
) -> None:
    async with (
        serve_channels() as server,
        httpx2.AsyncClient(base_url=server.url) as http,
        open_client(server, other_user.headers) as other,
    ):
        for path, body in (
            ("logout", {"refresh_token": user.tokens.refresh_token}),
            ("logout-all", None),
        ):
            account = user if body else other_user
            async with open_client(server, account.headers) as client:
                headers = account.headers
                answer = await http.post(f"/api/v1/auth/{path}", json=body, headers=headers)
                assert answer.status_code == 204
                assert await client.closed() == (1008, "the session is over")
            if body:
                # Somebody else's session goes on.
                assert await other.ask(type="ping") == {"type": "pong"}
        assert await other.closed() == (1008, "the session is over")
        assert "Traceback" not in server.logs()


async def test_what_no_event_tells_of_shows_at_the_periodic_check(
    serve_channels: ServeChannels, user: Account, database: Database
) -> None:
    async with (
        serve_channels(env={"REALTIME_AUTH_CHECK_SECONDS": "0.2"}) as server,
        open_client(server, user.headers) as client,
    ):
        async with database.transaction() as session:
            found = await session.get_one(User, user.id)
            found.is_active = False
        assert await client.closed() == (1008, "the session is over")


SELDOM = RealtimeAuthSettings(REALTIME_AUTH_CHECK_SECONDS=3600)


class Sessions:
    """Knows that a token is void, or fails to find out."""

    async def authenticate(self, token: str) -> Identity:
        raise {"void": InvalidTokenError("void"), "odd": ValueError("odd")}[token]


class Open:
    """A connection in this process."""

    waiting = 0

    def __init__(self, user_id: str) -> None:
        expires_at = datetime.now(UTC) + timedelta(hours=1)
        self.principal = Identity(user_id, Role.USER, "session", expires_at)
        self.closed = anyio.Event()

    def enter(self, hub: Hub, token: str) -> None:
        headers = [(b"authorization", f"Bearer {token}".encode())]
        hub.enter(self, HTTPConnection({"type": "websocket", "headers": headers}))

    def offer(self, channel: Any, frame: str) -> None: ...

    def close(self, code: int, reason: str) -> None:
        self.closed.set()

    def check(self, now: float) -> None: ...

    def abandon(self) -> None: ...


async def test_a_session_that_ends_during_the_handshake_ends_the_connection() -> None:
    hub = Hub(RealtimeSettings(), {})
    async with BackgroundRunner(AppSettings()) as background:
        events = EventBus(background)
        sessions = SocketSessions(SELDOM, hub, Sessions(), events, background)
        await sessions.listen()
        # The guard has let it pass by now.
        hub.publish(_ACCESS, _UserChanged(user_id="ada"))
        connection = Open("ada")
        connection.enter(hub, "void")
        with anyio.fail_after(PATIENCE_SECONDS):
            await connection.closed.wait()


async def test_a_token_that_cannot_be_checked_leaves_the_others_checked() -> None:
    hub = Hub(RealtimeSettings(), {})
    async with BackgroundRunner(AppSettings()) as background:
        events = EventBus(background)
        sessions = SocketSessions(SELDOM, hub, Sessions(), events, background)
        odd, void = Open("odd"), Open("void")
        odd.enter(hub, "odd")
        void.enter(hub, "void")
        await sessions.check()
    assert void.closed.is_set()
    assert not odd.closed.is_set()
