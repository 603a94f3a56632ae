"""The handshake of a WebSocket: its id, its deadline, and problem details when it is refused."""

from math import inf
from time import perf_counter

import anyio
import structlog
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.core.exchange import UNMATCHED_ROUTE
from app.core.metrics import observe_request
from app.core.problems import problem_response
from app.core.request_id import choose_request_id
from app.core.routing import route_template
from app.core.security_headers import SecurityHeaders

logger = structlog.get_logger("app.request")

# The ASGI extension of servers that can answer a handshake with more than a bare 403.
_EXTENSION = "websocket.http.response"
_RESPONSE = "websocket.http.response."
_SWITCHING_PROTOCOLS = 101


class Handshake:
    """Stands between server and application until the connection is accepted or refused."""

    deadline: anyio.CancelScope

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, headers: SecurityHeaders
    ) -> None:
        self._started_at = perf_counter()
        self._receive = receive
        self._send = send
        self._headers = headers
        self._late: dict[str, str] = {}
        self._can_answer = _EXTENSION in scope.get("extensions", {})
        self.decided = False
        self.request_id = choose_request_id(scope["headers"])
        scope["state"] = {
            **scope.get("state", {}),
            "request_id": self.request_id,
            "response_headers": self._late,
        }
        self.scope = scope

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed before anything was decided."""
        return self.deadline.cancel_called

    async def send(self, message: Message) -> None:
        """Pass on what the application sends; a refusal becomes a 404, or 403 by a route."""
        if self.decided:
            await self._pass_on(message)
        elif self.expired:
            # What the application says while it is being cancelled could be half an answer.
            return
        elif message["type"] == "websocket.close":
            status = 404 if route_template(self.scope) is None else 403
            await self.answer(problem_response(self.scope, status))
        else:
            await self._decide(message)

    async def answer(self, response: Response) -> None:
        """Refuse the connection with `response`."""

        async def send(message: Message) -> None:
            await (self._pass_on(message) if self.decided else self._decide(message))

        await response(self.scope, self._receive, send)

    def log(self, status: int) -> None:
        """Write the access line, and count: 101 is an accepted connection, which may last."""
        scope = self.scope
        client = scope.get("client")
        route = route_template(scope) or UNMATCHED_ROUTE
        seconds = perf_counter() - self._started_at
        observe_request("WEBSOCKET", route, status, seconds)
        logger.info(
            "websocket",
            route=route,
            path=scope["path"],
            status=status,
            duration_ms=round(seconds * 1000, 3),
            client=client[0] if client else None,
        )

    async def _decide(self, message: Message) -> None:
        self.decided = True
        # From here on the connection may last.
        self.deadline.deadline = inf
        self.log(message.get("status", _SWITCHING_PROTOCOLS))
        if message["type"] == f"{_RESPONSE}start":
            message["headers"] = self._headers.complete(
                message.get("headers", []), self._late, self.request_id.encode()
            )
            if not self._can_answer:
                # Which servers answer with a bare 403.
                message = {"type": "websocket.close"}
        await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        # A body without a start belongs to an answer that the server cannot give.
        if self._can_answer or not message["type"].startswith(_RESPONSE):
            await self._send(message)
