"""One request and what has been answered to it so far."""

from math import inf
from time import perf_counter

import anyio
import structlog
from starlette.types import Message, Receive, Scope, Send

from app.core.request_id import choose_request_id
from app.core.routing import route_template
from app.core.security_headers import SecurityHeaders

logger = structlog.get_logger("app.request")

# Orchestrators call these every few seconds, by address.
PROBES = "/health/"
# Paths that no route claims share one label: they are chosen by whoever scans the service.
UNMATCHED_ROUTE = "unmatched"
# nginx's code for a client that hung up before an answer; it is only logged.
CLIENT_CLOSED_REQUEST = 499


class Exchange:
    """Stands between server and application: completes, counts and, past the deadline, silences."""

    __slots__ = (
        "_body_received",
        "_bytes",
        "_complete_at",
        "_disconnected",
        "_headers",
        "_late",
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
        self._body_received = False
        self._reopened = False
        self.awaiting_body = False
        self._receive = receive
        self._send = send
        self._headers = headers
        self.request_id = choose_request_id(scope["headers"])
        self._late: dict[str, str] = {}
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
        self.awaiting_body = not self._body_received
        message = await self._receive()
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
                message.get("headers", []), self._late, self.request_id.encode()
            )
        elif message["type"] == "http.response.body":
            self._bytes += len(message.get("body", b""))
            if not message.get("more_body", False):
                self._complete_at = perf_counter()
        await self._send(message)

    def log(self) -> None:
        """Write the access line; the query string may hold personal data and is left out."""
        scope = self.scope
        path: str = scope["path"]
        log = logger.debug if path.startswith(PROBES) else logger.info
        ended_at = self._complete_at or perf_counter()
        client = scope.get("client")
        log(
            "request",
            method=scope["method"],
            route=route_template(scope) or UNMATCHED_ROUTE,
            path=path,
            status=CLIENT_CLOSED_REQUEST if self._disconnected else self._status or None,
            duration_ms=round((ended_at - self._started_at) * 1000, 3),
            bytes=self._bytes,
            client=client[0] if client else None,
            **({} if self._complete_at else {"aborted": True}),
        )
