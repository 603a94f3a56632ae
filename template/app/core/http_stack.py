"""What stands around the routes, in order: proxies, size limit, request, CORS, hosts, gzip."""

import re
from functools import partial
from http import HTTPStatus

from fastapi import FastAPI, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.gzip import GZipMiddleware
from starlette.datastructures import Headers
from starlette.middleware.body_limit import RequestBodyLimitResponder
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.core.exchange import PROBES
from app.core.http_settings import HttpSettings
from app.core.middleware import RequestMiddleware
from app.core.problems import problem_response
from app.core.security_headers import SecurityHeaders

__all__ = ["SERVER_RECEIVE", "HttpSettings", "install_http_stack"]

SERVER_RECEIVE = "app.server_receive"
"""Where a request's scope has the server's own `receive`: what routes get is a wrapper."""

# A page of 20 items shrinks to 24 % at level 1 and to 20 % at level 9; a page of 100 to 22 % and
# 17 %, for 8 times the processor time on the event loop.
_GZIP_LEVEL = 1
# Below, the answer fits into one packet either way.
_GZIP_MINIMUM_BYTES = 1024
# What a browser's script may read of an answer beside the safelisted headers.
_EXPOSED_HEADERS = [
    "ETag",
    "Idempotency-Replayed",
    "Location",
    "RateLimit-Limit",
    "RateLimit-Remaining",
    "RateLimit-Reset",
    "Retry-After",
    "X-Request-ID",
]
_HOST = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


def install_http_stack(app: FastAPI, settings: HttpSettings, *, https_only: bool) -> None:
    """Add the middlewares. What the settings leave open costs nothing: it is not installed.

    Args:
        app: The application, with its routes mounted or not.
        settings: What to accept.
        https_only: Whether browsers are told to come back over HTTPS only; true in production.
    """
    cors = partial(
        _Cors,
        allow_origins=settings.ALLOWED_ORIGINS,
        allow_credentials="*" not in settings.ALLOWED_ORIGINS,
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["*"],
        expose_headers=_EXPOSED_HEADERS,
    )
    # The last one added is the outermost.
    app.add_middleware(GZipMiddleware, minimum_size=_GZIP_MINIMUM_BYTES, compresslevel=_GZIP_LEVEL)
    if "*" not in settings.TRUSTED_HOSTS:
        app.add_middleware(_TrustedHosts, hosts=settings.TRUSTED_HOSTS)
    if settings.ALLOWED_ORIGINS:
        app.add_middleware(cors)
    app.add_middleware(
        RequestMiddleware,
        timeout_seconds=settings.REQUEST_TIMEOUT_SECONDS,
        headers=SecurityHeaders(https_only=https_only),
        with_cors=cors if settings.ALLOWED_ORIGINS else lambda inner: inner,
    )
    app.add_middleware(_BodyLimit, max_body_size=settings.MAX_BODY_SIZE)
    if settings.TRUSTED_PROXIES:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=settings.TRUSTED_PROXIES)


class _BodyLimit:
    """Stops reading a body past the limit; routes raise or lower it with `max_body_size`.

    It takes the place of `FastAPI(max_body_size=...)`, whose plain-text 413 would bypass
    `RequestMiddleware`.
    """

    def __init__(self, app: ASGIApp, *, max_body_size: int) -> None:
        self._app = app
        self._max_body_size = max_body_size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[SERVER_RECEIVE] = receive
        await _BodyLimitResponder(self._app, self._max_body_size)(scope, receive, send)


class _BodyLimitResponder(RequestBodyLimitResponder):
    async def send_with_limit(self, message: Message) -> None:
        # Starlette would put its own 413 in place of our problem details here.
        await self.send(message)


class _TrustedHosts:
    """Refuses requests for hosts that are not ours, before anything builds a URL from `Host`."""

    def __init__(self, app: ASGIApp, *, hosts: list[str]) -> None:
        self._app = app
        self._names = frozenset(hosts)
        self._suffixes = tuple(host.removeprefix("*") for host in hosts if host.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._allows(scope):
            await self._app(scope, receive, send)
            return
        response = problem_response(scope, 400, detail="The Host header names another service.")
        await response(scope, receive, send)

    def _allows(self, scope: Scope) -> bool:
        if scope["path"].startswith(PROBES):
            return True
        host = _HOST.fullmatch(Headers(scope=scope).get("host", "").lower())
        return host is not None and (
            host["name"] in self._names or host["name"].endswith(self._suffixes)
        )


class _Cors(CORSMiddleware):
    """Starlette's, with refused preflights answered as problem details."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer the question that a browser asks before the request itself."""
        response = super().preflight_response(request_headers)
        refused = response.status_code >= HTTPStatus.BAD_REQUEST
        return _RefusedPreflight(response) if refused else response


class _RefusedPreflight(Response):
    def __init__(self, refusal: Response) -> None:
        super().__init__(status_code=refusal.status_code)
        self._detail = bytes(refusal.body).decode()
        self._cors_headers = {
            name: value
            for name, value in refusal.headers.items()
            if name == "vary" or name.startswith("access-control-")
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = problem_response(
            scope, self.status_code, detail=self._detail, headers=self._cors_headers
        )
        await response(scope, receive, send)
