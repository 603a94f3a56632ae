"""Connections of users who have proved who they are: no longer open than that holds."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import ClassVar, NamedTuple

import structlog
from fastapi.security.utils import get_authorization_scheme_param
from pydantic import BaseModel, Field
from starlette.requests import HTTPConnection

from app.auth.events import SessionEnded
from app.core.access_tokens import InvalidTokenError
from app.core.background import BackgroundRunner, RunnerClosedError
from app.core.channels import Channel, Message
from app.core.database import is_unavailable
from app.core.events import EventBus
from app.core.security import Authenticator, Identity
from app.core.settings import Section
from app.realtime.connection import POLICY_VIOLATION
from app.realtime.hub import Hub, Receiver
from app.users.events import AccessChanged

_SUBPROTOCOL = "bearer"
# Longer than a handshake may take from its guard's answer to the connection.
_HANDSHAKE_SECONDS = 60.0

logger = structlog.get_logger(__name__)


class RealtimeAuthSettings(Section):
    """How long a connection may outlive the session that it was opened in."""

    REALTIME_AUTH_CHECK_SECONDS: float = Field(
        default=60,
        gt=0,
        le=3600,
        description="How often each connection's session is looked up again, for an end that no "
        "event has told of, such as one in another process.",
    )


class _UserChanged(Message):
    name: ClassVar[str] = "user-changed"

    user_id: str


class _Told(BaseModel):
    data: _UserChanged


class _Watch(NamedTuple):
    token: str
    expiry: asyncio.TimerHandle


# In no feed, so that no client can subscribe to it.
_ACCESS = Channel("$access", messages=(_UserChanged,))


def announce_access(events: EventBus, hub: Hub) -> None:
    """Have all processes look at the connections of those whose access ends in this one."""

    async def tell(event: AccessChanged | SessionEnded) -> None:
        hub.publish(_ACCESS, _UserChanged(user_id=str(event.user_id)))

    events.subscribe_after_commit(SessionEnded, tell)
    events.subscribe_after_commit(AccessChanged, tell)


async def token_from_subprotocol(connection: HTTPConnection) -> None:
    """Take the token from the subprotocols `bearer, <token>`, as browsers can set no header.

    It is put where the guard that follows looks for it.
    """
    if connection.scope["type"] != "websocket":
        return
    offered: list[str] = connection.scope.get("subprotocols", [])
    if len(offered) == 2 and offered[0] == _SUBPROTOCOL:
        # Browsers give up when none of those that they offer is chosen.
        connection.scope["state"]["subprotocol"] = _SUBPROTOCOL
        if "authorization" not in connection.headers:
            value = f"Bearer {offered[1]}".encode("latin-1", "replace")
            connection.scope["headers"].append((b"authorization", value))


class SocketSessions:
    """Closes connections whose token has expired or whose session is over.

    An end in this process is acted upon at once. The other processes are told by way of the hub;
    what does not reach them shows at the periodic check.

    Args:
        settings: How often to look.
        hub: Has the connections.
        authenticator: Knows whose token it is, now.
        events: Tell of what ends access in this process.
        background: Runs the checks.
    """

    def __init__(
        self,
        settings: RealtimeAuthSettings,
        hub: Hub,
        authenticator: Authenticator,
        events: EventBus,
        background: BackgroundRunner,
    ) -> None:
        self._hub = hub
        self._authenticator = authenticator
        self._background = background
        self._loop = asyncio.get_running_loop()
        self._watched: dict[Receiver, _Watch] = {}
        # Whose access has changed, and when; the oldest first.
        self._changed: dict[str, float] = {}
        hub.observe(self)
        announce_access(events, hub)
        background.every(settings.REALTIME_AUTH_CHECK_SECONDS, "check_connections", self.check)

    async def listen(self) -> None:
        """Hear of what ends access in all processes."""
        await self._hub.listen(_ACCESS, _ACCESS.name, self)

    def opened(self, receiver: Receiver, connection: HTTPConnection) -> None:
        """Have a connection end with its token at the latest."""
        identity = receiver.principal
        if not isinstance(identity, Identity):
            return
        _, token = get_authorization_scheme_param(connection.headers.get("authorization"))
        seconds = (identity.expires_at - datetime.now(UTC)).total_seconds()
        expiry = self._loop.call_later(
            max(0, seconds), receiver.close, POLICY_VIOLATION, "the token has expired"
        )
        self._watched[receiver] = _Watch(token, expiry)
        if identity.id in self._changed:
            # Perhaps after its guard had let it pass.
            self._look_at(identity.id)

    def ended(self, receiver: Receiver) -> None:
        """Forget a connection."""
        if watch := self._watched.pop(receiver, None):
            watch.expiry.cancel()

    def offer(self, channel: Channel, frame: str) -> None:  # noqa: ARG002
        """Look at the connections of somebody whose access has changed."""
        user_id = _Told.model_validate_json(frame).data.user_id
        self._remember(user_id, self._loop.time())
        if any(receiver.principal.id == user_id for receiver in self._watched):
            self._look_at(user_id)

    async def check(self, user_id: str | None = None) -> None:
        """Close the connections whose token does not hold any more.

        Args:
            user_id: Whose connections; everybody's when omitted.
        """
        receivers: dict[str, list[Receiver]] = {}
        for receiver, watch in self._watched.items():
            if user_id in {None, receiver.principal.id}:
                receivers.setdefault(watch.token, []).append(receiver)
        for token, holders in receivers.items():
            try:
                await self._authenticator.authenticate(token)
            except InvalidTokenError:
                for receiver in holders:
                    receiver.close(POLICY_VIOLATION, "the session is over")
            except Exception as error:  # noqa: BLE001
                # It ends nobody's session; the token's expiry holds anyway.
                logger.warning("connections_not_checked", error=type(error).__name__)
                if is_unavailable(error):
                    return

    def _look_at(self, user_id: str) -> None:
        # Once the runner is closed, the connections are about to be as well.
        with suppress(RunnerClosedError):
            self._background.spawn("check_connections", partial(self.check, user_id))

    def _remember(self, user_id: str, now: float) -> None:
        self._changed.pop(user_id, None)
        self._changed[user_id] = now
        while now - self._changed[oldest := next(iter(self._changed))] > _HANDSHAKE_SECONDS:
            del self._changed[oldest]
