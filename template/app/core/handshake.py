"""The handshake of a WebSocket: its id, and problem details when it is refused."""

import structlog
from starlette.types import Message, Receive, Scope, Send

from app.core.problems import problem_response
from app.core.request_id import choose_request_id
from app.core.routing import route_template
from app.core.security_headers import SecurityHeaders

logger = structlog.get_logger("app.request")

# The ASGI extension of servers that can answer a handshake with more than a bare 403.
_EXTENSION = "websocket.http.response"
_RESPONSE_START = "websocket.http.response.start"


class Handshake:
    """Stands between server and application until the connection is accepted or refused."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, headers: SecurityHeaders
    ) -> None:
        self._receive = receive
        self._send = send
        self._headers = headers
        self._decided = False
        self.request_id = choose_request_id(scope["headers"])
        scope["state"] = {**scope.get("state", {}), "request_id": self.request_id}
        self.scope = scope

    async def send(self, message: Message) -> None:
        """Pass on what the application sends; a refusal becomes a 404, or 403 by a route."""
        if self._decided:
            await self._send(message)
        elif message["type"] == "websocket.close":
            await self._refuse(message)
        else:
            self._decided = True
            await self._send_completed(message)

    async def _refuse(self, message: Message) -> None:
        self._decided = True
        status = 404 if route_template(self.scope) is None else 403
        logger.info("websocket_refused", path=self.scope["path"], status=status)
        if _EXTENSION not in self.scope.get("extensions", {}):
            await self._send(message)
            return
        response = problem_response(self.scope, status)
        await response(self.scope, self._receive, self._send_completed)

    async def _send_completed(self, message: Message) -> None:
        if message["type"] == _RESPONSE_START:
            message["headers"] = self._headers.complete(
                message.get("headers", []), {}, self.request_id.encode()
            )
        await self._send(message)
