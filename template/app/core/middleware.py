"""The one middleware around every request: id, log line, headers, time limit, last-resort 500."""

from collections.abc import Callable
from math import inf
from time import perf_counter

import anyio
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.database import is_unavailable
from app.core.errors import ServiceUnavailableError, error_response
from app.core.problems import problem_response
from app.core.request_id import choose_request_id
from app.core.routing import route_template
from app.core.security_headers import SecurityHeaders

logger = structlog.get_logger("app.request")

# Paths that no route claims share one label: they are chosen by whoever scans the service.
UNMATCHED_ROUTE = "unmatched"
# nginx's code for a client that hung up; it is only logged.
CLIENT_CLOSED_REQUEST = 499


class RequestMiddleware:
    """Outermost part of the stack: no answer and no exception leaves the service around it."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        timeout_seconds: float,
        headers: SecurityHeaders,
        with_cors: Callable[[ASGIApp], ASGIApp],
    ) -> None:
        """Wrap the application.

        Args:
            app: The application.
            timeout_seconds: How long a request may take until its answer starts. Streams and
                background tasks may go on for longer.
            headers: Completes the headers of each answer.
            with_cors: Applies the service's CORS rules; the answers made here, outside of the
                CORS middleware, need them as well.
        """
        self._app = app
        self._timeout_seconds = timeout_seconds
        self._headers = headers
        self._with_cors = with_cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._headers)
        # Servers reuse contexts: what an earlier request has bound must not show up here.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=exchange.request_id)
        try:
            await self._answer(exchange)
        finally:
            exchange.log()
            structlog.contextvars.clear_contextvars()

    async def _answer(self, exchange: "_Exchange") -> None:
        failure: Exception | None = None
        try:
            # anyio's scope leaves shielded work alone: a commit that has begun is finished.
            with anyio.move_on_after(self._timeout_seconds) as exchange.deadline:
                await self._app(exchange.scope, exchange.receive, exchange.send)
        except Exception as error:  # noqa: BLE001
            failure = error
        if failure is None and not exchange.expired:
            return
        if isinstance(failure, ClientDisconnect):
            return
        if exchange.started:
            # Too late for an answer. Returning before the body is complete makes the server close
            # the connection, so that the client sees that it is cut; raising would log it twice.
            logger.error("request_failed_after_response_started", exc_info=failure)
            return
        response = self._late_answer(exchange, failure)
        exchange.reopen()
        await self._with_cors(response)(exchange.scope, exchange.receive, exchange.send)

    def _late_answer(self, exchange: "_Exchange", failure: Exception | None) -> Response:
        if exchange.expired:
            logger.warning("request_timed_out", exc_info=failure)
            if exchange.awaiting_body:
                return problem_response(
                    exchange.scope,
                    408,
                    detail="The request's body did not arrive in time.",
                    # The rest of the body is not waited for.
                    headers={"Connection": "close"},
                )
            return problem_response(
                exchange.scope, 504, detail="The request took too long and was given up."
            )
        assert failure is not None
        request = Request(exchange.scope)
        if isinstance(failure, HTTPException):
            response = error_response(request, failure)
        elif is_unavailable(failure):
            logger.error("database_unavailable", exc_info=failure)
            response = error_response(request, ServiceUnavailableError())
        else:
            logger.error("unhandled_exception", exc_info=failure)
            response = None
        return response or problem_response(
            exchange.scope,
            500,
            detail="Something went wrong on our side; quote the request_id when you report it.",
        )


class _Exchange:
    """One request and what has been answered to it so far."""

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
        return self._status > 0

    @property
    def expired(self) -> bool:
        return self.deadline.cancel_called

    def reopen(self) -> None:
        """Let an answer through although the time is up."""
        self._reopened = True

    async def receive(self) -> Message:
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
        log = logger.debug if path.startswith("/health/") else logger.info
        ended_at = self._complete_at or perf_counter()
        client = scope.get("client")
        log(
            "request",
            method=scope["method"],
            route=route_template(scope) or UNMATCHED_ROUTE,
            path=path,
            status=CLIENT_CLOSED_REQUEST if self._disconnected else self._status,
            duration_ms=round((ended_at - self._started_at) * 1000, 3),
            bytes=self._bytes,
            client=client[0] if client else None,
            **({} if self._complete_at else {"aborted": True}),
        )
