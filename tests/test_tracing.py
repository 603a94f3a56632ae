"""Real collectors: of one order's trace, and of what the service's own tests make it record."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from tests.combinations import Combination, parse_combination
from tests.inside.plugins.collector import collecting
from tests.service import Service

INSIDE = Path(__file__).parent / "inside"
PLUGINS = INSIDE / "plugins"
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


def test_an_order_is_one_trace(services: Callable[[Combination], Service]) -> None:
    everything = "postgresql+redis+arq+jwt+websockets+example"
    service = services(parse_combination(everything))
    service.run_inside(INSIDE / "tracing.py", extra={"PYTHONPATH": str(PLUGINS)})


def test_the_services_own_tests_pass_with_traces_which_hold_nothing_secret(
    services: Callable[[Combination], Service],
) -> None:
    service = services(parse_combination("sqlite+redis+arq+jwt+websockets+example"))
    with collecting() as collector:
        service.run(
            ["pytest", "-p", "traced_suite", "-n0", "-q", "-k", f"not ({OTHERWISE})", *CHOSEN],
            extra={
                "PYTHONPATH": str(PLUGINS),
                "TRACED_ENVIRONMENT": json.dumps(collector.environment),
            },
        )
    recorded = b"\n".join(TEXT.findall(b"\n".join(collector.received)))
    assert [name for name in RECORDED if name not in recorded] == []
    found = {what: set(re.findall(pattern, recorded)) for what, pattern in SECRET.items()}
    assert found == {what: set() for what in SECRET}
