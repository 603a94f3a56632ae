"""Real collectors: of one order's trace, and of what the service's own tests make it record."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.combinations import Combination, parse_combination
from tests.service import Service

INSIDE = Path(__file__).parent / "inside"
# What deals with people, their sessions, their orders, and with events.
CHOSEN = ("tests/auth", "tests/orders", "tests/users", "tests/realtime")
# They compare whole problems, or what is handed over to a job, with what is there without traces.
OTHERWISE = "test_all_refusals_look_alike or test_a_placed_order_is_handed_over_in_its_own_transact"
RECORDED = (
    b"POST /api/v1/auth/token",
    b"POST /api/v1/orders",
    b"INSERT orders",
    b"SELECT users",
    b"enqueue orders.confirm",
    b"job orders.confirm",
    b"publish order.confirmed",
    b"WS /api/v1/ws",
)
SECRET = {
    "address": rb"[\w.+-]+@[\w-]+\.[a-z]+",
    "token": rb"eyJ[\w-]{6,}",
    "header": rb"(?i)bearer|cookie|idempotency-key",
    "password": rb"\$argon2|bernoulli|hunter2",
    "query string": rb"[?&]\w+=|url\.query",
    # Which is what a statement holds that a test has written as a whole.
    "value of a statement": rb"VALUES \((?!\?|1\))|TEA-250",
}
# Ids are random bytes, in which anything may be.
TEXT = re.compile(rb"[\x20-\x7e\s]{12,}")


class Collector(ThreadingHTTPServer):
    """Keeps what is exported to it, as it came."""

    def __init__(self) -> None:
        """Listen on a free port of this machine."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[bytes] = []

    @property
    def url(self) -> str:
        """For `OTEL_EXPORTER_OTLP_ENDPOINT`."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.received.append(self.rfile.read(int(self.headers["Content-Length"])))
        assert "Content-Encoding" not in self.headers
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that takes exports meanwhile."""
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        try:
            yield collector
        finally:
            collector.shutdown()


def test_an_order_is_one_trace(services: Callable[[Combination], Service]) -> None:
    everything = "postgresql+redis+arq+jwt+websockets+example"
    services(parse_combination(everything)).run_inside(INSIDE / "tracing.py")


def test_the_services_own_tests_pass_with_traces_which_hold_nothing_secret(
    services: Callable[[Combination], Service],
) -> None:
    service = services(parse_combination("sqlite+redis+arq+jwt+websockets+example"))
    with collecting() as collector:
        service.run(
            ["pytest", "-p", "traced_suite", "-n0", "-q", "-k", f"not ({OTHERWISE})", *CHOSEN],
            extra={
                "PYTHONPATH": str(INSIDE / "plugins"),
                "TRACED_ENDPOINT": collector.url,
                "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
            },
        )
    recorded = b"\n".join(TEXT.findall(b"\n".join(collector.received)))
    assert [name for name in RECORDED if name not in recorded] == []
    found = {what: set(re.findall(pattern, recorded)) for what, pattern in SECRET.items()}
    assert found == {what: set() for what in SECRET}
