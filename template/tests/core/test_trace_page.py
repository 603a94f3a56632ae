"""Traces that are kept for `/docs/traces`: what is in them, how many, and where there are none."""

import json
import sys
from pathlib import Path

import anyio
import pytest
from fastapi import APIRouter
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from sqlalchemy import text

from app.core import trace_file
from app.core.database import SessionDep
from app.core.telemetry import TelemetrySettings, carry, open_tracing, span
from tests.fixtures.application import Connect, MakeApp, include_first

router = APIRouter()


@router.get("/kept/{number}")
async def kept(number: int, session: SessionDep) -> None:
    await session.execute(text("SELECT :value"), {"value": "s3cret-parameter"})
    raise RuntimeError("s3cret-message")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "data" / "traces.jsonl"
    monkeypatch.setattr(trace_file, "FILE", path)
    return path


@pytest.mark.usefixtures("traces", "file")
async def test_what_a_request_did_is_kept_for_the_page(make_app: MakeApp, connect: Connect) -> None:
    app = make_app(OTEL_TRACES_EXPORTER="docs")
    include_first(app, router)
    async with connect(app) as client:
        page = await client.get("/docs/traces")
        empty = await client.get("/docs/traces/spans")
        answer = await client.get("/kept/1", params={"q": "s3cret-query"})
        trace.get_tracer_provider().force_flush()  # type: ignore[attr-defined]
        spans = await client.get("/docs/traces/spans")
        tag = {"If-None-Match": spans.headers["ETag"]}
        assert (await client.get("/docs/traces/spans", headers=tag)).status_code == 304
    assert "aria-current=page>Traces</a>" in page.text
    assert empty.headers["ETag"] != spans.headers["ETag"]
    found = [json.loads(line) for line in spans.text.splitlines()]
    assert {it["name"] for it in found} >= {"GET /docs/traces", "GET /kept/{number}", "SELECT"}
    # The page would show itself asking.
    assert not [it for it in found if "spans" in it["name"]]
    [request] = [it for it in found if it["name"].startswith("GET /kept")]
    [statement] = [it for it in found if it["name"] == "SELECT"]
    assert request["trace"] == statement["trace"] == answer.json()["trace_id"]
    assert request["parent"] is None
    assert request["failed"]
    assert request["attributes"]["http.response.status_code"] == 500
    assert statement["parent"] == request["id"]
    assert request["start"] <= statement["start"] <= statement["end"] <= request["end"]
    assert "s3cret" not in spans.text


@pytest.mark.usefixtures("traces")
async def test_processes_share_the_file(file: Path) -> None:
    settings = TelemetrySettings(OTEL_TRACES_EXPORTER="docs")
    others = trace_file.TraceFile()
    others.write("of another process\n")
    others.flush()
    async with open_tracing(settings, "tests"):
        with span("enqueue", SpanKind.PRODUCER):
            cause = carry()
        with span("job", SpanKind.CONSUMER, cause=cause, job__outcome="done"):
            pass
    other, *lines = (await anyio.Path(file).read_text()).splitlines()
    assert other == "of another process"
    enqueued, job = map(json.loads, lines)
    assert (job["trace"], job["parent"]) == (enqueued["trace"], enqueued["id"])
    assert (job["kind"], job["attributes"]) == ("consumer", {"job.outcome": "done"})


def test_the_file_keeps_the_newest_whole_lines(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_file, "MAX_BYTES", 104)
    lines = trace_file.TraceFile()
    for number in range(1000, 1040):
        lines.write(f"{number}\n")
        lines.flush()
        assert file.stat().st_size <= 104
    found = file.read_text().split()
    assert found == [str(number) for number in range(1040 - len(found), 1040)]
    assert len(found) >= 9
    assert list(file.parent.iterdir()) == [file]


async def test_there_is_no_page_unless_it_is_asked_for(
    make_app: MakeApp, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if importing it failed.
    monkeypatch.setitem(sys.modules, "app.core.trace_page", None)
    async with connect(make_app()) as client:
        assert (await client.get("/docs/traces")).status_code == 404
        assert "Traces" not in (await client.get("/docs")).text
    kept = TelemetrySettings(OTEL_TRACES_EXPORTER="docs")
    assert [*kept.production_problems()] == ["OTEL_TRACES_EXPORTER: `docs` is for development"]
    disabled = TelemetrySettings(OTEL_TRACES_EXPORTER="docs", OTEL_SDK_DISABLED=True)
    assert not disabled.records_traces
