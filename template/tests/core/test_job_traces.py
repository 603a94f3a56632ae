"""A job belongs to the trace of what has handed it over, whichever process does it."""

from pathlib import Path

import httpx2
from opentelemetry.trace import format_trace_id
from sqlalchemy import update

from app.core.job_runner import JobRunner
from app.core.jobs import JobRegistry
from app.core.outbox import OutboxJob, Ticket
from app.core.telemetry import open_tracing, span
from app.settings import Settings
from tests.fixtures.jobs import Jobs
from tests.fixtures.tracing import Traces
from tests.jobs import definitions
from tests.jobs.definitions import Note


async def test_a_job_is_in_the_trace_of_its_cause_and_without_one_in_its_own(
    jobs: Jobs, settings: Settings, traces: Traces, tmp_path: Path
) -> None:
    async with open_tracing(traces.settings, "tests"), httpx2.AsyncClient() as client:
        with span("cause"):
            await jobs.enqueue(definitions.note, Note(file=tmp_path / "notes"))
        await jobs.enqueue(definitions.note, Note(file=tmp_path / "notes"), job_id="old")
        async with jobs.database.transaction() as session:
            # As releases before 1.5 have written it.
            old = OutboxJob.job_id == "old"
            await session.execute(update(OutboxJob).where(old).values(context={}))
        runner = JobRunner(JobRegistry.of([definitions]), jobs.database, client, settings)
        for row in await jobs.rows():
            await runner.run(Ticket(row.id, row.tries))
        spans = traces.spans()

    cause = next(span for span in spans if span.name == "cause")
    handed_over, _ = [span for span in spans if span.name == f"enqueue {definitions.note.name}"]
    first, second = [span for span in spans if span.name == f"job {definitions.note.name}"]
    assert handed_over.parent == cause.context
    assert first.parent is not None
    assert first.parent.span_id == handed_over.context.span_id
    assert second.parent is None
    in_trace = {span.name for span in spans if span.context.trace_id == cause.context.trace_id}
    assert {"INSERT outbox", "UPDATE outbox"} <= in_trace
    assert first.attributes == {"job.try": 1, "job.outcome": "done"}
    assert format_trace_id(first.context.trace_id) in str((await jobs.rows())[0].context)
