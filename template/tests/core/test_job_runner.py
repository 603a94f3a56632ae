from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.core import dead_letters, outbox
from app.core.database import Database
from app.core.job_runner import JobRunner
from app.core.jobs import Job, JobContext, JobRegistry, RetryPolicy, job
from app.core.outbox import SupersededError, Ticket
from app.settings import Settings
from tests.fixtures.jobs import Jobs
from tests.jobs import definitions
from tests.jobs.definitions import QUICKLY, Note


@dataclass(frozen=True)
class Trial:
    """Runners that know the tests' jobs, but not the one of the next release."""

    jobs: Jobs
    settings: Settings

    def runner(self, *more: Job[Any]) -> JobRunner:
        """Make a runner that knows more jobs as well."""
        known = JobRegistry.of([definitions]).jobs | {each.name: each for each in more}
        del known[definitions.of_the_next_release.name]
        database, client = self.jobs.database, httpx2.AsyncClient()
        registry = JobRegistry(known, ())
        unknown = RetryPolicy(max_tries=2)
        return JobRunner(registry, database, client, self.settings, unknown=unknown)

    async def run_all(self, *more: Job[Any]) -> None:
        """Try every job of the outbox once more, however long it should wait."""
        runner = self.runner(*more)
        for row in await self.jobs.rows():
            await runner.run(Ticket(row.id, row.tries))


@pytest.fixture
def trial(jobs: Jobs, settings: Settings) -> Trial:
    """Runs jobs in this process."""
    return Trial(jobs, settings)


def notes(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


async def test_a_job_that_is_done_is_not_done_again(
    jobs: Jobs, trial: Trial, tmp_path: Path
) -> None:
    await jobs.enqueue(definitions.note, Note(file=tmp_path / "notes"))
    [row] = await jobs.rows()

    for ticket in (Ticket(row.id, 0), Ticket(row.id, 0), Ticket(row.id, 1)):
        await trial.runner().run(ticket)

    assert notes(tmp_path / "notes") == ["done"]


async def test_a_named_error_is_retried_until_the_tries_are_used_up(
    jobs: Jobs, trial: Trial, tmp_path: Path
) -> None:
    await jobs.enqueue(definitions.out_of_order, Note(file=tmp_path / "notes"))
    for _ in range(2):
        await trial.run_all()
        assert not await jobs.letters()

    await trial.run_all()

    [letter] = await jobs.letters()
    assert not await jobs.rows()
    assert (letter.tries, letter.error) == (3, "ValueError: out of order")
    assert "definitions.py" in letter.traceback
    assert letter.enqueued_at < letter.failed_at


@pytest.mark.parametrize(
    ("definition", "error", "tries"),
    [
        (definitions.bug, "ZeroDivisionError", 1),
        (definitions.too_slow, "TimeoutError", 3),
        (definitions.of_the_next_release, "UnknownJobError: there is no job", 2),
    ],
)
async def test_what_becomes_a_dead_letter_and_after_how_many_tries(
    trial: Trial, definition: Job[Any], error: str, tries: int, tmp_path: Path
) -> None:
    jobs = trial.jobs
    await jobs.enqueue(definition, Note(file=tmp_path / "notes"))
    for _ in range(tries):
        assert not await jobs.letters()
        await trial.run_all()

    [letter] = await jobs.letters()
    assert letter.error.startswith(error)
    assert letter.tries == tries


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        ({}, "file: Field required"),
        ({"file": "notes", "urgent": True}, "urgent: Extra inputs are not permitted"),
        ({"file": "notes", "text": 1}, "text: Input should be a valid string"),
    ],
)
async def test_a_payload_of_another_release_ends_in_the_dead_letters(
    jobs: Jobs, trial: Trial, payload: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    async with jobs.database.transaction() as session:
        await outbox.add(
            session,
            name=definitions.note.name,
            payload=payload,
            context={},
            due_at=datetime.now(UTC),
        )
    await jobs.enqueue(definitions.note, Note(file=tmp_path / "notes"))
    for _ in range(QUICKLY.max_tries):
        await trial.run_all()

    [letter] = await jobs.letters()
    assert letter.error == f"PayloadMismatchError: {problem}"
    assert letter.payload == payload
    assert notes(tmp_path / "notes") == ["done"]


async def test_the_effects_of_a_worker_that_was_overtaken_are_rolled_back(
    jobs: Jobs, trial: Trial, database: Database, tmp_path: Path
) -> None:
    async def write_and_be_overtaken(payload: Note, context: JobContext) -> None:
        [row] = await jobs.rows()
        if row.tries == 1:
            # Its lease ends, and somebody else does the same job.
            await overtaker.run(Ticket(row.id, 1))
        await definitions.note.enqueue(context.session, payload, job_id=f"effect-{context.tries}")

    overtaken = job(name="tests.overtaken", payload=Note)(write_and_be_overtaken)
    overtaker = trial.runner(overtaken)
    await jobs.enqueue(overtaken, Note(file=tmp_path / "notes"))
    [row] = await jobs.rows()

    await trial.runner(overtaken).run(Ticket(row.id, 0))

    original, *effects = await jobs.rows()
    assert original.done_at is not None
    assert [effect.job_id for effect in effects] == ["effect-2"]
    assert not await jobs.letters()


async def test_the_handler_of_dead_letters_writes_in_their_transaction_and_cannot_prevent_them(
    jobs: Jobs, trial: Trial, tmp_path: Path
) -> None:
    async def fail(_: Note, __: JobContext) -> None:
        raise ZeroDivisionError

    async def write(payload: Note, session: Any) -> None:
        await definitions.note.enqueue(session, payload)
        if payload.text == "fail":
            raise ZeroDivisionError

    failing = job(name="tests.failing", payload=Note)(fail)
    failing.on_dead_letter(write)
    await jobs.enqueue(failing, Note(file=tmp_path / "notes"))
    await jobs.enqueue(failing, Note(file=tmp_path / "notes", text="fail"))

    await trial.run_all(failing)

    assert len(await jobs.letters()) == 2
    assert [row.name for row in await jobs.rows()] == ["tests.note"]


async def test_a_dead_letter_that_is_retried_has_all_its_tries_again(
    jobs: Jobs, database: Database
) -> None:
    await jobs.a_dead_letter(job_id="unique", ordering_key="one")
    async with database.transaction() as session:
        [letter] = await dead_letters.find(session)
        assert await dead_letters.retry(session, letter)

    [row] = await jobs.rows()
    assert (row.job_id, row.ordering_key, row.tries) == ("unique", "one", 0)
    assert row.context == {"request_id": "cause-1"}
    assert not await jobs.letters()


async def test_a_dead_letter_is_not_retried_beside_a_newer_job_with_its_id(
    jobs: Jobs, database: Database, tmp_path: Path
) -> None:
    await jobs.a_dead_letter(job_id="unique")
    await jobs.enqueue(definitions.note, Note(file=tmp_path / "notes"), job_id="unique")
    async with database.transaction() as session:
        [letter] = await dead_letters.find(session)
        assert not await dead_letters.retry(session, letter)

    assert len(await jobs.rows()) == 1
    assert not await jobs.letters()


async def test_nobody_buries_a_job_that_someone_else_has_begun(
    jobs: Jobs, database: Database, tmp_path: Path
) -> None:
    await jobs.enqueue(definitions.note, Note(file=tmp_path / "notes"))
    [row] = await jobs.rows()
    async with database.transaction() as session:
        await outbox.begin_try(session, Ticket(row.id, 0), timedelta(seconds=9))

    with pytest.raises(SupersededError):
        async with database.transaction() as session:
            await dead_letters.bury(session, row, "error", "traceback")
