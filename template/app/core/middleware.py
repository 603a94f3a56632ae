"""The one middleware around every request: id, log line, headers, time limit, last-resort 500."""

from collections.abc import Callable

import anyio
import structlog
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.database import is_unavailable
from app.core.deadline import deadline
from app.core.errors import AppError, ServiceUnavailableError, error_response
from app.core.exchange import CLIENT_CLOSED_REQUEST, Exchange
from app.core.handshake import Handshake
from app.core.problems import problem_response
from app.core.request_id import choose_trace_context
from app.core.security_headers import SecurityHeaders

logger = structlog.get_logger("app.request")


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
        """Answer one request, whatever happens inside."""
        if scope["type"] == "websocket":
            await self._open(Handshake(scope, receive, send, self._headers), receive)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self._headers)
        # Servers reuse contexts: what an earlier request has bound must not show up here.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(
            request_id=exchange.request_id, **choose_trace_context(scope["headers"])
        )
        try:
            await self._answer(exchange)
        finally:
            exchange.log()
            structlog.contextvars.clear_contextvars()

    async def _open(self, handshake: Handshake, receive: Receive) -> None:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(
            request_id=handshake.request_id, **choose_trace_context(handshake.scope["headers"])
        )
        try:
            await self._shake_hands(handshake, receive)
        finally:
            structlog.contextvars.clear_contextvars()

    async def _shake_hands(self, handshake: Handshake, receive: Receive) -> None:
        failure: Exception | None = None
        try:
            with deadline(self._timeout_seconds) as handshake.deadline:
                await self._app(handshake.scope, receive, handshake.send)
        except Exception as error:
            if handshake.decided:
                raise
            failure = error
        if handshake.decided:
            return
        if handshake.expired:
            logger.warning("request_timed_out", exc_info=failure)
            await handshake.answer(_too_slow(handshake.scope))
        elif failure:
            await handshake.answer(_problem(handshake.scope, failure))
        else:
            handshake.log(CLIENT_CLOSED_REQUEST)

    async def _answer(self, exchange: Exchange) -> None:
        failure: Exception | None = None
        try:
            # A commit that has begun is finished, and answered as what it is.
            with deadline(self._timeout_seconds) as exchange.deadline:
                await self._app(exchange.scope, exchange.receive, exchange.send)
        except anyio.get_cancelled_exc_class():
            # The server stops and has no more patience with this request.
            if not exchange.started:
                await self._send(exchange, _problem(exchange.scope, ServiceUnavailableError()))
            raise
        except Exception as error:  # noqa: BLE001
            failure = error
        if exchange.started and failure:
            # Too late for an answer. Returning before the body is complete makes the server close
            # the connection, so that the client sees that it is cut; raising would log it twice.
            logger.error("request_failed_after_response_started", exc_info=failure)
        elif exchange.expired:
            logger.warning("request_timed_out", exc_info=failure)
            await self._send(exchange, _timeout(exchange))
        elif failure and not isinstance(failure, ClientDisconnect):
            await self._send(exchange, _problem(exchange.scope, failure))

    async def _send(self, exchange: Exchange, response: Response) -> None:
        exchange.reopen()
        await self._with_cors(response)(exchange.scope, exchange.receive, exchange.send)


def _problem(scope: Scope, failure: Exception) -> Response:
    if response := error_response(scope, failure):
        return response
    if is_unavailable(failure):
        logger.error("database_unavailable", exc_info=failure)
        return ServiceUnavailableError().to_response(scope)
    logger.error("unhandled_exception", exc_info=failure)
    return AppError(
        "Something went wrong on our side; quote the request_id when you report it."
    ).to_response(scope)


def _timeout(exchange: Exchange) -> Response:
    if exchange.awaiting_body:
        return problem_response(
            exchange.scope, 408, detail="The request's body did not arrive in time."
        )
    return _too_slow(exchange.scope)


def _too_slow(scope: Scope) -> Response:
    return problem_response(scope, 504, detail="The request took too long and was given up.")
