"""Where a worker, which serves nothing else, answers `GET /metrics`."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from ipaddress import ip_network
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send

from app.core.connections import counted
from app.core.http_settings import HttpSettings
from app.core.metrics import Metrics, MetricsEndpoint
from app.core.request_head import bounded

_MAX_CONNECTIONS = 20


@asynccontextmanager
async def open_listener(settings: HttpSettings, port: int, metrics: Metrics) -> AsyncIterator[None]:
    """Answer until the end of the block, to whom the service would.

    Args:
        settings: Who may read.
        port: Where to listen, on all addresses unless only this machine may read; 0 for nowhere.
        metrics: What to tell.

    Raises:
        OSError: the port is in use.
    """
    if not port:
        yield
        return
    routes = Starlette(routes=[MetricsEndpoint(settings).route])

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await routes({**scope, "state": {"metrics": metrics}}, receive, send)

    is_local = all(ip_network(network).is_loopback for network in settings.METRICS_NETWORKS)
    config = uvicorn.Config(
        answer,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    config.load()
    protocol: Any = config.http_protocol_class
    if hasattr(protocol, "on_message_begin"):
        # As the service's own, but that Prometheus needs few.
        heads = bounded(protocol, settings.HEAD_TIMEOUT_SECONDS)
        config.http_protocol_class = counted(heads, _MAX_CONNECTIONS, lambda: False)
    server = _Server(config)
    with ExitStack() as stack:
        listeners = [stack.enter_context(it) for it in _listen(port, is_local=is_local)]
        serving = asyncio.create_task(server.serve(sockets=listeners))
        try:
            yield
        finally:
            server.should_exit = True
            await serving


def _listen(port: int, *, is_local: bool) -> Iterator[socket.socket]:
    yield socket.create_server(("127.0.0.1" if is_local else "", port))
    try:
        yield socket.create_server(("::1" if is_local else "::", port), family=socket.AF_INET6)
    except OSError as error:
        # Many containers have no IPv6.
        if error.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
            raise


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # The worker has handlers of its own.
        yield
