"""What the service measures of itself, and who may read it at `/metrics`."""

import asyncio
import multiprocessing
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import anyio
import structlog
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from app.core.http_settings import HttpSettings
from app.core.metric_files import read_files
from app.core.proxies import UNIX
from app.core.threads import offload

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""The buckets of whatever takes time; the last is `REQUEST_TIMEOUT_SECONDS` by default."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WEBSOCKET"})
_TICK_SECONDS = 0.5
_INQUIRY_SECONDS = 2.0
# Each proxy adds one of these, unless it was told not to.
_FORWARDED = (b"forwarded", b"via", b"x-forwarded-", b"x-real-ip")
# prometheus-client itself reads it while it is imported: no setting could come in time.
_FOLDER = os.environ.get("PROMETHEUS_MULTIPROC_DIR")  # noqa: TID251

_REQUESTS = Histogram(
    "http_server_request_duration_seconds",
    "Requests, by the time until the answer was complete; of WebSockets the handshake.",
    ["method", "route", "status"],
    buckets=SECONDS,
)
_LAG = Histogram(
    "event_loop_lag_seconds",
    "How late the event loop ran what was due.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
_STARTED_AT = Gauge(
    "service_start_time_seconds",
    "When the process that started last did so, in seconds since the epoch.",
    multiprocess_mode="livemax",
)

logger = structlog.get_logger(__name__)


# Making a label's child again costs more than observing it. Those who scan the service choose
# neither of the labels.
@lru_cache(maxsize=4096)
def _requests(method: str, route: str, status: int) -> Histogram:
    return _REQUESTS.labels(method if method in _METHODS else "OTHER", route, status)


def observe_request(method: str, route: str, status: int, seconds: float) -> None:
    """Count one request.

    Args:
        method: As the client sent it; unknown ones share a label.
        route: The path's template.
        status: What was answered, or would have been; 0 for nothing.
        seconds: How long it took.
    """
    _requests(method, route, status).observe(seconds)


class Metrics:
    """Reads what nobody counts as it happens, and writes all metrics as text.

    Whatever is counted as it happens is a metric beside the code that does it.
    """

    def __init__(self) -> None:
        self._samples: list[Callable[[], None]] = []
        self._inquiries: list[Callable[[], Awaitable[None]]] = []

    def sample(self, read: Callable[[], None]) -> None:
        """Have `read` set the gauges of something in this process; it is called often."""
        self._samples.append(read)

    def inquire(self, ask: Callable[[], Awaitable[None]]) -> None:
        """Have `ask` set the gauges of what all processes share; called when somebody reads."""
        self._inquiries.append(ask)

    async def render(self) -> bytes:
        """Write all metrics, those of the other processes included, in Prometheus' text format."""
        self._read()
        for ask in self._inquiries:
            try:
                with anyio.fail_after(_INQUIRY_SECONDS):
                    await ask()
            except Exception as error:  # noqa: BLE001
                logger.warning("metrics_not_read", error=f"{type(error).__name__}: {error}")
        if _FOLDER:
            return await offload(read_files, _FOLDER)
        return await offload(generate_latest, REGISTRY)

    def _read(self) -> None:
        for read in self._samples:
            read()

    async def watch(self) -> None:
        """Measure the event loop, and for other processes' readers what is in this one."""
        while True:
            due = time.perf_counter() + _TICK_SECONDS
            await asyncio.sleep(_TICK_SECONDS)
            _LAG.observe(max(0.0, time.perf_counter() - due))
            if _FOLDER:
                self._read()


@asynccontextmanager
async def open_metrics(
    sample: Callable[[], None], *, alone: bool = False
) -> AsyncIterator[Metrics]:
    """Measure until the end of the block.

    Args:
        sample: As for `Metrics.sample`.
        alone: Whether no other process serves the same, although another one has started this.
    """
    if not (_FOLDER or alone) and multiprocessing.parent_process() is not None:
        logger.warning("metrics_of_one_process_only", set="PROMETHEUS_MULTIPROC_DIR")
    _STARTED_AT.set_to_current_time()
    metrics = Metrics()
    metrics.sample(sample)
    watching = asyncio.create_task(metrics.watch())
    try:
        yield metrics
    finally:
        watching.cancel()


class MetricsEndpoint:
    """`GET /metrics`: for `METRICS_NETWORKS`; for anybody else there is no such path.

    The peer of the connection must be in one of them, and nobody may have asked through a proxy,
    which may be as near as the networks are: not one of `TRUSTED_PROXIES`, no header of a proxy,
    and no HTTP/1.0, which nginx speaks by default.
    """

    def __init__(self, settings: HttpSettings) -> None:
        self._networks = [ip_network(network) for network in settings.METRICS_NETWORKS]
        proxies = [network for network in settings.TRUSTED_PROXIES if network != UNIX]
        self._proxies = [ip_network(network) for network in proxies]
        self.route = Route("/metrics", self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            HTTPException: 404, for whoever may not read them.
        """
        if scope["method"] != "GET" or not self._admits(scope):
            raise HTTPException(404)
        # Starlette's routes leave it to FastAPI's to name themselves.
        scope["route"] = self.route
        metrics: Metrics = scope["state"]["metrics"]
        response = Response(
            await metrics.render(),
            headers={"Cache-Control": "no-store"},
            media_type=CONTENT_TYPE_LATEST,
        )
        await response(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        # Without such a header the peer is still who has connected: nobody has replaced it.
        if scope["http_version"] == "1.0" or any(
            name.startswith(_FORWARDED) for name, _ in scope["headers"]
        ):
            return False
        peer = (scope.get("client") or ("",))[0]
        return _is_in(peer, self._networks) and not _is_in(peer, self._proxies)


def _is_in(peer: str, networks: list[IPv4Network | IPv6Network]) -> bool:
    try:
        address = ip_address(peer)
    except ValueError:
        # A Unix socket, which has a proxy at its other end.
        return False
    if isinstance(address, IPv6Address):
        # As a socket that serves both families tells of IPv4.
        address = address.ipv4_mapped or address
    return any(address in network for network in networks)
