from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import update

from app.core import housekeeping, outbox
from app.core.database import Database
from app.core.job_runner import JobRunner
from app.core.jobs import JobRegistry, Tick
from app.core.outbox import OutboxJob, Ticket
from app.settings import Settings
from tests.fixtures.jobs import Jobs
from tests.jobs.definitions import Note, note


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
    await jobs.enqueue(housekeeping.purge_outbox.job, Tick(scheduled_for=long_ago))
    purge = (await jobs.rows())[-1]

    async with httpx2.AsyncClient() as client:
        registry = JobRegistry.of([housekeeping])
        await JobRunner(registry, database, client, settings).run(Ticket(purge.id, 0))

    assert [row.id for row in await jobs.rows()] == [new, unfinished, purge.id]
    assert [kept.id for kept in await jobs.letters()] == [letter.id]
