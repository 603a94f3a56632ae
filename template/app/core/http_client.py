"""The process's one HTTP client for calls to other services: pooled, with time limits."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import httpx2
import structlog
from fastapi import Depends
from pydantic import Field
from starlette.requests import HTTPConnection

from app.core.request_id import HEADER
from app.core.settings import Section
from app.core.telemetry import SpanKind, annotate, carry, span


class HttpClientSettings(Section):
    """How calls to other services are bounded."""

    HTTP_CLIENT_TIMEOUT_SECONDS: float = Field(
        default=10,
        gt=0,
        le=300,
        description="How long to wait for each read, each write and a free connection of the pool.",
    )
    HTTP_CLIENT_CONNECT_TIMEOUT_SECONDS: float = Field(
        default=3, gt=0, le=60, description="How long connecting may take."
    )
    HTTP_CLIENT_MAX_CONNECTIONS: int = Field(
        default=100, ge=1, le=10_000, description="How many connections to have open at once."
    )


@asynccontextmanager
async def open_http_client(settings: HttpClientSettings) -> AsyncIterator[httpx2.AsyncClient]:
    """Open the client for the life of the process and close its connections at the end.

    A failed connection attempt is made once more, which is safe as nothing was sent. Requests
    are never repeated: only the caller knows whether that is harmless.
    """
    limits = httpx2.Limits(
        max_connections=settings.HTTP_CLIENT_MAX_CONNECTIONS,
        # Every connection may be kept: reopening one costs more than an idle socket.
        max_keepalive_connections=settings.HTTP_CLIENT_MAX_CONNECTIONS,
        keepalive_expiry=30,
    )
    timeout = httpx2.Timeout(
        settings.HTTP_CLIENT_TIMEOUT_SECONDS,
        connect=settings.HTTP_CLIENT_CONNECT_TIMEOUT_SECONDS,
    )
    async with httpx2.AsyncClient(
        transport=_TracedTransport(limits=limits, retries=1),
        timeout=timeout,
        event_hooks={"request": [_forward_request_id]},
    ) as client:
        yield client


class _TracedTransport(httpx2.AsyncHTTPTransport):
    """Has the other service continue the trace."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        # Neither path nor query: for some services they hold the credentials.
        with span(
            f"{request.method} {request.url.host}",
            SpanKind.CLIENT,
            http__request__method=request.method,
            server__address=request.url.host,
        ):
            for name, value in carry().items():
                request.headers.setdefault(name, value)
            response = await super().handle_async_request(request)
            failure = str(response.status_code) if response.is_error else None
            annotate(error=failure, http__response__status_code=response.status_code)
            return response


async def _forward_request_id(request: httpx2.Request) -> None:
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    if request_id:
        request.headers.setdefault(HEADER, request_id)


async def get_http_client(connection: HTTPConnection) -> httpx2.AsyncClient:
    """Give the process's HTTP client to a route or to a dependency."""
    client: httpx2.AsyncClient = connection.state.http_client
    return client


HttpClientDep = Annotated[httpx2.AsyncClient, Depends(get_http_client)]
