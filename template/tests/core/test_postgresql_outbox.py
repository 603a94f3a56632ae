from datetime import timedelta
from pathlib import Path

import anyio

from app.core import outbox
from app.core.database import Database
from app.core.outbox import Ticket
from tests.fixtures.jobs import Jobs
from tests.jobs.definitions import Note, note

LEASE = timedelta(seconds=60)


async def test_a_relay_passes_over_the_rows_that_others_have_locked(
    jobs: Jobs, database: Database, tmp_path: Path
) -> None:
    for _ in range(3):
        await jobs.enqueue(note, Note(file=tmp_path / "notes"))
    first, *others = [row.id for row in await jobs.rows()]

    async with database.transaction() as relay, database.transaction() as worker:
        await outbox.finish(worker, Ticket(first, 0))
        with anyio.fail_after(30):
            tickets = await outbox.take_due(relay, 100, LEASE)

    assert [ticket.id for ticket in tickets] == others
