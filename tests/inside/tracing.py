"""One trace of a placed order, sent to a collector; test_tracing.py copies it."""

import subprocess
import sys
from typing import Any

import anyio
import httpx2
from collector import Collector, collecting
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.factories.orders import order_body
from tests.fixtures.caller import Caller
from tests.fixtures.jobs import Work
from tests.fixtures.server import Serve
from tests.realtime.client import open_client

PATIENCE = 120
TRACE = f"{0xABC:032x}"


def spans(collector: Collector) -> list[tuple[str, Any]]:
    """What it has got, each with the service that it comes from."""
    found = []
    for body in collector.received:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            attributes = {it.key: it.value.string_value for it in resource.resource.attributes}
            for scope in resource.scope_spans:
                found += [(attributes["service.name"], span) for span in scope.spans]
    return found


def names(collector: Collector) -> set[str]:
    """Of the spans of the trace, with the services that they come from in front."""
    return {
        f"{service}: {span.name}"
        for service, span in spans(collector)
        if span.trace_id.hex() == TRACE
    }


async def test_an_order_is_one_trace_from_the_request_to_the_event_on_a_socket(
    serve: Serve, work: Work, caller: Caller, redis_url: str
) -> None:
    with collecting() as collector:
        env = {**collector.environment, "REDIS_URL": redis_url}
        headers = {
            **caller.headers,
            "traceparent": f"00-{TRACE}-{2:016x}-01",
            "Cookie": "session=s3cret",
        }
        async with (
            serve(env={**env, "OTEL_SERVICE_NAME": "service"}) as server,
            work(env={**env, "OTEL_SERVICE_NAME": "worker"}) as worker,
            open_client(server, caller.headers) as client,
            httpx2.AsyncClient(base_url=server.url, headers=headers) as http,
        ):
            await client.subscribe("orders")
            query = {"token": "s3cret"}
            order = await http.post("/api/v1/orders", json=order_body(), params=query)
            assert order.status_code == 201
            frames = [await client.receive() for _ in range(2)]
            expected = {
                "service: POST /api/v1/orders",
                "service: INSERT orders",
                "service: INSERT outbox",
                "service: enqueue orders.confirm",
                "worker: job orders.confirm",
                "worker: UPDATE orders",
                "worker: publish order.confirmed",
                "service: deliver orders",
            }
            with anyio.move_on_after(PATIENCE):
                while not expected <= names(collector):
                    await anyio.sleep(0.05)
            assert expected - names(collector) == set()
            logged = [
                line["event"] for log in (server, worker) for line in log.lines(trace_id=TRACE)
            ]
            assert {"request", "job_done"} <= set(logged)
    # To the letter, whatever travels between the processes.
    assert {frozenset(frame) for frame in frames} == {
        frozenset({"type", "channel", "event", "data"})
    }
    sent = b"".join(collector.received)
    bearer = caller.headers.get("Authorization", "s3cret").removeprefix("Bearer ")
    for secret in ("s3cret", bearer, order.json()["customer_email"], caller.id):
        assert secret.encode() not in sent


def test_by_default_the_sdk_is_not_even_imported() -> None:
    check = (
        "import sys, app.main, app.worker_lifespan;"
        "sys.exit('opentelemetry.sdk' in sys.modules or 'google.protobuf' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


async def test_a_collector_that_is_away_holds_nobody_up(serve: Serve) -> None:
    async with serve(env={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}) as server:
        async with httpx2.AsyncClient(base_url=server.url) as http:
            assert (await http.get("/nowhere")).json()["trace_id"]
        server.process.terminate()
        assert await server.wait(PATIENCE) in {0, -15}
