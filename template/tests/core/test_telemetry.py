"""Traces: what they hold, what they never hold, and that nothing is there until it is set up."""

import sys

import pytest
import structlog
from fastapi import APIRouter
from opentelemetry.trace import SpanKind, format_trace_id
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.core import telemetry
from app.core.background import BackgroundRunner
from app.core.database import Database, SessionDep
from app.core.errors import ConflictError
from app.core.http_client import HttpClientDep, open_http_client
from app.core.telemetry import carry, open_tracing, span
from app.settings import InvalidSettingsError, Settings, load_settings
from tests.core.test_http_client import SETTINGS, running
from tests.fixtures.application import Connect, MakeApp, include_first
from tests.fixtures.tracing import ENDPOINT, Traces

TRACE = f"{0xABC:032x}"
TRACEPARENT = f"00-{TRACE}-{2:016x}-01"
router = APIRouter()


@router.get("/traced/{server_port}")
async def traced(server_port: int, session: SessionDep, client: HttpClientDep) -> str:
    await session.execute(text("SELECT :value"), {"value": "s3cret-parameter"})
    url = f"http://user:s3cret-password@127.0.0.1:{server_port}/s3cret-path?key=s3cret-query"
    return (await client.get(url)).text


@router.get("/conflicting")
async def conflicting() -> None:
    raise ConflictError("no")


@router.get("/failing")
async def failing() -> None:
    raise RuntimeError("s3cret-message")


async def test_a_request_its_sql_and_its_calls_are_one_trace_without_what_is_secret(
    traces: Traces, make_app: MakeApp, connect: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    app = make_app(OTEL_EXPORTER_OTLP_ENDPOINT=ENDPOINT)
    include_first(app, router)
    headers = {
        "Authorization": "Bearer s3cret-token",
        "Cookie": "session=s3cret-cookie",
        "traceparent": TRACEPARENT,
    }
    async with running() as server, connect(app) as client:
        port = server.url.rpartition(":")[2]
        query = {"q": "s3cret-query"}
        answer = await client.get(f"/traced/{port}", params=query, headers=headers)
        problem = await client.get("/conflicting", headers=headers)
        await client.get("/failing", params=query)
        await client.get("/health/live", headers=headers)
        spans = [span for span in traces.spans() if format_trace_id(span.context.trace_id) == TRACE]

    request = next(span for span in spans if span.name == "GET /traced/{server_port}")
    statement = next(span for span in spans if span.name == "SELECT")
    call = next(span for span in spans if span.name == "GET 127.0.0.1")
    assert request.parent is not None
    assert request.parent.span_id == 2
    assert {span.parent and span.parent.span_id for span in (statement, call)} == {
        request.context.span_id
    }
    # Probes are not recorded.
    assert {span.name for span in spans if span.kind is SpanKind.SERVER} == {
        "GET /traced/{server_port}",
        "GET /conflicting",
    }
    assert f"traceparent: 00-{TRACE}-{call.context.span_id:016x}-01" in answer.json()
    assert problem.json()["trace_id"] == TRACE
    assert f"trace_id={TRACE}" in capsys.readouterr().out
    recorded = "".join(span.to_json() for span in traces.spans())
    assert "GET /failing" in recorded
    assert "s3cret" not in recorded


async def test_work_beside_the_requests_is_part_of_their_trace(
    traces: Traces, settings: Settings
) -> None:
    async def fail() -> None:
        raise ValueError("s3cret")

    async with open_tracing(traces.settings, "tests"):
        with span("cause") as cause:
            async with BackgroundRunner(settings) as background:
                background.spawn("work", fail)
            with pytest.raises(ValueError, match="s3cret"), span("left by it"):
                await fail()
        work, left = traces.named("work"), traces.named("left by it")
    assert work.context.trace_id == cause.get_span_context().trace_id
    for failed in (work, left):
        assert not failed.status.is_ok
        assert failed.status.description is None
        assert failed.attributes == {"error.type": "ValueError"}
        assert not failed.events


async def test_a_statement_that_fails_is_named_by_its_error_only(
    traces: Traces, database: Database
) -> None:
    async with open_tracing(traces.settings, "tests"):
        with span("cause"):
            async with database.transaction() as session:
                with pytest.raises(DBAPIError):
                    await session.execute(text("SELECT s3cret_column"))
                await session.rollback()
                await session.execute(text("-- why\n/* and */ SELECT 1"))
        failed, succeeded = [it for it in traces.spans() if it.name == "SELECT"]
    assert not failed.status.is_ok
    assert failed.status.description is None
    assert not failed.events
    assert succeeded.status.is_unset


async def test_a_long_state_of_a_caller_goes_nowhere(traces: Traces) -> None:
    short, long = "vendor=1", ",".join(f"vendor{number}={'x' * 200}" for number in range(5))
    async with open_tracing(traces.settings, "tests"):
        with span("work", cause={"traceparent": TRACEPARENT, "tracestate": short}):
            assert carry()["tracestate"] == short
        with span("work", cause={"traceparent": TRACEPARENT, "tracestate": long}):
            assert carry().keys() == {"traceparent"}


async def test_what_is_not_sampled_is_not_recorded_and_others_are_told(traces: Traces) -> None:
    settings = traces.settings.model_copy(update={"OTEL_TRACES_SAMPLER": "always_off"})
    async with open_tracing(settings, "tests"):
        with span("work", SpanKind.CONSUMER, cause={"traceparent": TRACEPARENT}):
            carried = carry()["traceparent"]
        assert carried.startswith(f"00-{TRACE}-")
        assert carried.endswith("-00")
        assert not traces.spans()


async def test_nothing_is_recorded_by_default_and_a_callers_trace_goes_on() -> None:
    async with open_tracing(telemetry.TelemetrySettings(), "tests"), running() as server:
        assert telemetry._tracer is None
        assert not carry()
        async with open_http_client(SETTINGS) as client:
            with structlog.contextvars.bound_contextvars(traceparent=TRACEPARENT):
                answer = await client.get(server.url)
    assert f"traceparent: {TRACEPARENT}" in answer.text


@pytest.mark.parametrize(
    ("variables", "refusal"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT}, "uv sync --extra telemetry"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "uv sync --extra telemetry"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "collector"},
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: is not a",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1"}, "OTEL_EXPORTER_OTLP_ENDPOINT: is not a"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:x"}, "OTEL_EXPORTER_OTLP_ENDPOINT: is not a"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER: "),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, None),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL: must be http/protobuf",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: must be http/protobuf",
        ),
        ({"OTEL_TRACES_SAMPLER": "most"}, "OTEL_TRACES_SAMPLER: "),
        ({"OTEL_TRACES_SAMPLER_ARG": "2"}, "OTEL_TRACES_SAMPLER_ARG: "),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, "OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, None),
    ],
)
def test_what_cannot_be_exported_stops_the_start(
    monkeypatch: pytest.MonkeyPatch,
    database_url: str,
    variables: dict[str, str],
    refusal: str | None,
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # As if the extra were not installed.
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    if refusal is None:
        assert load_settings().traces_endpoint is None
    else:
        with pytest.raises(InvalidSettingsError, match=refusal):
            load_settings()
