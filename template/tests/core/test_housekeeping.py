from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import update

from app.core import dead_letters, housekeeping, outbox
from app.core.database import Database
from app.core.job_runner import JobRunner
from app.core.jobs import JobRegistry, PeriodicJob, Tick
from app.core.outbox import OutboxJob, Ticket
from app.settings import Settings
from tests.fixtures.jobs import Jobs
from tests.jobs.definitions import Note, note


async def run_it(job: PeriodicJob, jobs: Jobs, settings: Settings) -> OutboxJob:
    """Run the periodic job once; its row."""
    await jobs.enqueue(job.job, Tick(scheduled_for=datetime.now(UTC)))
    row = (await jobs.rows())[-1]
    async with httpx2.AsyncClient() as client:
        registry = JobRegistry.of([housekeeping])
        await JobRunner(registry, jobs.database, client, settings).run(Ticket(row.id, 0))
    return row


async def test_jobs_done_long_ago_are_purged_batch_by_batch_and_dead_letters_are_kept(
    jobs: Jobs,
    database: Database,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbox, "_PURGE_BATCH", 2)
    long_ago = datetime.now(UTC) - timedelta(days=8)
    for _ in range(7):
        await jobs.enqueue(note, Note(file=tmp_path / "notes"))
    *old, new, unfinished = [row.id for row in await jobs.rows()]
    async with database.transaction() as session:
        for id_ in (*old, new):
            await outbox.finish(session, Ticket(id_, 0))
        await session.execute(
            update(OutboxJob).where(OutboxJob.id.in_(old)).values(done_at=long_ago)
        )
    letter = await jobs.a_dead_letter(failed_at=long_ago)

    purge = await run_it(housekeeping.purge_outbox, jobs, settings)

    assert [row.id for row in await jobs.rows()] == [new, unfinished, purge.id]
    assert [kept.id for kept in await jobs.letters()] == [letter.id]


async def test_dead_letters_are_kept_for_90_days(
    jobs: Jobs, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letters, "_PURGE_BATCH", 2)
    now = datetime.now(UTC)
    for days in (100, 91, 91, 89, 0):
        await jobs.a_dead_letter(error=str(days), failed_at=now - timedelta(days=days))

    await run_it(housekeeping.purge_dead_letters, jobs, settings)

    assert [letter.error for letter in await jobs.letters()] == ["89", "0"]
