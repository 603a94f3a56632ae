"""One request and what has been answered to it so far."""

from contextlib import suppress
from math import inf
from time import perf_counter

import anyio
import anyio.lowlevel
import structlog
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from app.core.admission import admit
from app.core.metrics import observe_request
from app.core.request_id import choose_request_id
from app.core.routing import below_prefix, declared_methods, route_path, route_template
from app.core.security_headers import SecurityHeaders

logger = structlog.get_logger("app.request")

SERVER_RECEIVE = "app.server_receive"
"""Where a request's scope has the server's own `receive`: what routes get is a wrapper."""

# Orchestrators and monitoring call these every few seconds, by address.
PROBES = ("/health/", "/metrics")
# So does the page of development, for what it shows.
_UNREAD = (*PROBES, "/docs/traces/")
# Paths that no route claims share one label: they are chosen by whoever scans the service.
UNMATCHED_ROUTE = "unmatched"
# nginx's code for a client that hung up before an answer; it is only logged.
CLIENT_CLOSED_REQUEST = 499
# How much is still read of a body after an early answer, in bytes and seconds: closing at once
# resets the connection, and a client that is still sending may lose the answer (RFC 9112, 9.6).
_LINGER_BYTES = 1_048_576
_LINGER_SECONDS = 1.0


class Exchange:
    """Stands between server and application: completes, counts and, past the deadline, silences."""

    __slots__ = (
        "_admitted",
        "_ahead",
        "_body_received",
        "_bytes",
        "_closing",
        "_complete_at",
        "_disconnected",
        "_headers",
        "_late",
        "_method",
        "_receive",
        "_reopened",
        "_send",
        "_started_at",
        "_status",
        "awaiting_body",
        "deadline",
        "request_id",
        "scope",
    )

    deadline: anyio.CancelScope

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, headers: SecurityHeaders
    ) -> None:
        self._started_at = perf_counter()
        self._complete_at = 0.0
        self._status = 0
        self._bytes = 0
        self._disconnected = False
        self._body_received = not _has_body(scope)
        self._ahead: Message | None = None
        self._admitted = False
        self._closing = False
        self._reopened = False
        self.awaiting_body = False
        self._receive = receive
        self._send = send
        self._headers = headers
        self.request_id = choose_request_id(scope["headers"])
        self._late: dict[str, str] = {}
        self._method: str = scope["method"]
        if self._method == "HEAD" and "HEAD" not in declared_methods(scope):
            # Answered as GET would be, without the body (RFC 9110, section 9.3.2). The server's
            # own scope stays as it is: it must not expect a body either.
            scope = {**scope, "method": "GET"}
        # A copy, as some servers hand the same state to every request.
        scope["state"] = {
            **scope.get("state", {}),
            "request_id": self.request_id,
            "response_headers": self._late,
        }
        self.scope = scope

    @property
    def started(self) -> bool:
        """Whether the answer's status and headers are out."""
        return self._status > 0

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed before the answer started."""
        return self.deadline.cancel_called

    def reopen(self) -> None:
        """Let an answer through although the time is up."""
        self._reopened = True

    async def receive(self) -> Message:
        """Pass on what the client sends."""
        if self._ahead is not None:
            message, self._ahead = self._ahead, None
            return message
        if not self._admitted:
            self._admitted = True
            await admit(self.scope)
        self.awaiting_body = not self._body_received
        try:
            message = await self._receive()
        except HTTPException:
            # The body is larger than its limit.
            self.awaiting_body = False
            raise
        # Not in a `finally`: a cancelled wait is what tells a slow client from a slow handler.
        self.awaiting_body = False
        if message["type"] == "http.request":
            self._body_received = not message.get("more_body", False)
        elif not self.started:
            self._disconnected = True
        return message

    async def send(self, message: Message) -> None:
        """Pass on what the application answers, with complete headers."""
        if self.expired and not self._reopened:
            # What the application still says while it is being cancelled could be half an answer.
            return
        if message["type"] == "http.response.start":
            # From here on there is nothing better to answer, and streams may last.
            self.deadline.deadline = inf
            self._status = message["status"]
            message["headers"] = self._headers.complete(
                below_prefix(message.get("headers", []), self.scope),
                self._late,
                self.request_id.encode(),
            )
            if await self._is_body_coming():
                # The server would otherwise read all that is left of it before the next request.
                self._closing = True
                message["headers"].append((b"connection", b"close"))
            await self._send(message)
            if self._method == "HEAD":
                await self._end(b"")
        elif self._method == "HEAD":
            # A stream must come to hear that its answer is complete.
            await anyio.lowlevel.checkpoint()
        else:
            await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        if message["type"] != "http.response.body" or message.get("more_body", False):
            self._bytes += len(message.get("body", b""))
            await self._send(message)
        else:
            await self._end(message.get("body", b""))

    async def _end(self, body: bytes) -> None:
        self._bytes += len(body)
        self._complete_at = perf_counter()
        # Also where nothing has come for long: whoever sends slowly may send just now.
        if self._closing:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            await self._linger()
            body = b""
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _is_body_coming(self) -> bool:
        """Whether the client sends a body of which the server has not received the end."""
        # Later versions of HTTP do not send a body and the next request one after the other.
        if self._body_received or not self.scope.get("http_version", "1.1").startswith("1"):
            return False
        # Whoever waits for a `100 Continue` would be told to send.
        waits = any(name == b"expect" for name, _ in self.scope["headers"])
        if not waits and not self.awaiting_body:
            # A small one has come with its headers; it may still be read after the answer's start.
            with suppress(HTTPException), anyio.move_on_after(0):
                self._admitted = True
                self._ahead = await self.receive()
        return not self._body_received

    async def _linger(self) -> None:
        # Not through the limit on the body, which may be what has refused it.
        receive: Receive = self.scope.get(SERVER_RECEIVE, self._receive)
        left = _LINGER_BYTES
        with anyio.move_on_after(_LINGER_SECONDS):
            while left > 0:
                message = await receive()
                if not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))

    def log(self) -> None:
        """Write the access line, and count; the query may hold personal data and is left out."""
        scope = self.scope
        log = logger.debug if is_probe(scope) else logger.info
        ended_at = self._complete_at or perf_counter()
        client = scope.get("client")
        route = route_template(scope) or UNMATCHED_ROUTE
        status = CLIENT_CLOSED_REQUEST if self._disconnected else self._status
        seconds = ended_at - self._started_at
        observe_request(self._method, route, status, seconds)
        log(
            "request",
            method=self._method,
            route=route,
            path=scope["path"],
            status=status or None,
            duration_ms=round(seconds * 1000, 3),
            bytes=self._bytes,
            client=client[0] if client else None,
            **({} if self._complete_at else {"aborted": True}),
        )


def is_probe(scope: Scope) -> bool:
    """Whether it is monitoring that asks, which nobody wants to read of."""
    return route_path(scope).startswith(_UNREAD)


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0") != b"")
        for name, value in scope["headers"]
    )
