"""What stands around the routes, in order: proxies, size limit, request, CORS, hosts, gzip."""

import re
from functools import partial
from http import HTTPStatus

from fastapi import FastAPI, Response
from fastapi.middleware.cors import CORSMiddleware
from starlette.datastructures import Headers
from starlette.middleware.body_limit import RequestBodyLimitResponder
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.compression import Compression
from app.core.exchange import PROBES, SERVER_RECEIVE
from app.core.http_settings import HttpSettings
from app.core.middleware import RequestMiddleware
from app.core.problems import problem_response
from app.core.proxies import ProxyHeaders
from app.core.routing import route_path
from app.core.security_headers import SecurityHeaders

__all__ = ["SERVER_RECEIVE", "HttpSettings", "install_http_stack"]

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
_HOST = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{0,5})?")


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
        allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["*"],
        expose_headers=_EXPOSED_HEADERS,
    )
    # The last one added is the outermost.
    app.add_middleware(Compression)
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
        app.add_middleware(ProxyHeaders, trusted_hosts=settings.TRUSTED_PROXIES)


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
        # Where a trace is recorded, this is a wrapper already.
        scope.setdefault(SERVER_RECEIVE, receive)
        await _BodyLimitResponder(self._app, self._max_body_size)(scope, receive, send)


class _BodyLimitResponder(RequestBodyLimitResponder):
    async def send_with_limit(self, message: Message) -> None:
        # Starlette would put its own 413 in place of our problem details here.
        await self.send(message)


class _TrustedHosts:
    """Refuses requests for hosts that are not ours, before anything builds a URL from `Host`.

    Whatever hosts are ours, the header must be there once and be valid (RFC 9112, section 3.2): of
    two, a proxy may read one and the service the other. Only HTTP/1.0 may leave it out.
    """

    def __init__(self, app: ASGIApp, *, hosts: list[str]) -> None:
        self._app = app
        self._any = "*" in hosts
        self._names = frozenset(hosts)
        self._suffixes = tuple(host.removeprefix("*") for host in hosts if host.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = None if scope["type"] == "lifespan" else self._refuse(scope)
        if refusal is None:
            await self._app(scope, receive, send)
            return
        response = problem_response(scope, 400, detail=refusal)
        await response(scope, receive, send)

    def _refuse(self, scope: Scope) -> str | None:
        sent = [value for name, value in scope["headers"] if name == b"host"]
        name: str | None = None
        if sent or scope.get("http_version", "1.0") != "1.0":
            host = _HOST.fullmatch(sent[0].decode("latin-1").lower()) if len(sent) == 1 else None
            if host is None:
                return "A request needs one valid Host header."
            name = host["name"]
        if self._any or route_path(scope).startswith(PROBES):
            return None
        if name is not None and (name in self._names or name.endswith(self._suffixes)):
            return None
        return "The Host header names another service."


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
