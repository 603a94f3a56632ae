import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
from sqlalchemy import update

from app.core import dead_letters, outbox
from app.core.database import Database
from app.core.job_runner import JobRunner
from app.core.jobs import Job, JobContext, JobRegistry, job
from app.core.outbox import OutboxJob, SupersededError, Ticket
from app.settings import Settings
from tests.fixtures.jobs import Jobs, eventually
from tests.jobs import definitions
from tests.jobs.definitions import QUICKLY, Nap, Note


@dataclass(frozen=True)
class Trial:
    """Runners that know the tests' jobs, but not the one of the next release."""

    jobs: Jobs
    settings: Settings

    def runner(self, *more: Job[Any], **changes: Any) -> JobRunner:
        """Make a runner that knows more jobs as well, and settings that differ."""
        known = JobRegistry.of([definitions]).jobs | {each.name: each for each in more}
        del known[definitions.of_the_next_release.name]
        database, client = self.jobs.database, httpx2.AsyncClient()
        registry = JobRegistry(known, ())
        settings = self.settings.model_copy(update=changes)
        return JobRunner(registry, database, client, settings)

    async def run_all(self, *more: Job[Any], **changes: Any) -> None:
        """Try every job of the outbox once more, however long it should wait."""
        runner = self.runner(*more, **changes)
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
async def test_a_payload_of_another_release_waits_for_its_workers_then_is_a_dead_letter(
    jobs: Jobs, trial: Trial, payload: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    async with jobs.database.transaction() as session:
        await outbox.add(
            session,
            name=definitions.note.name,
            payload=payload,
            context={},
        )
    await jobs.enqueue(definitions.note, Note(file=tmp_path / "notes"))
    for _ in range(QUICKLY.max_tries + 1):
        await trial.run_all()
    assert not await jobs.letters()

    await trial.run_all(JOB_ROLLOUT_SECONDS=0)

    [letter] = await jobs.letters()
    assert letter.error == f"PayloadMismatchError: {problem}"
    assert letter.payload == payload
    assert notes(tmp_path / "notes") == ["done"]


async def test_a_job_of_the_next_release_keeps_all_its_tries_for_the_worker_that_knows_it(
    jobs: Jobs, trial: Trial, tmp_path: Path
) -> None:
    tries: list[int] = []

    async def fail(_: Note, context: JobContext) -> None:
        tries.append(context.tries)
        raise ValueError

    new = job(name="tests.new", payload=Note, retry_on=(ValueError,), retry=QUICKLY)(fail)
    await jobs.enqueue(new, Note(file=tmp_path / "notes"))
    for _ in range(QUICKLY.max_tries + 1):
        await trial.run_all()
    [waiting] = await jobs.rows()
    await trial.run_all(new)
    [tried] = await jobs.rows()
    # An old worker again, which must not count on from when it saw the job first.
    await trial.run_all()
    [waiting_again] = await jobs.rows()
    for _ in range(QUICKLY.max_tries - 1):
        await trial.run_all(new)

    assert (waiting.tries, tried.tries, waiting_again.tries) == (0, 1, 1)
    assert waiting.refused_since is not None
    assert tried.refused_since is None
    assert waiting_again.refused_since is not None
    assert waiting_again.refused_since > waiting.refused_since
    assert tries == [1, 2, 3]
    [letter] = await jobs.letters()
    assert letter.error == "ValueError"


async def refused(jobs: Jobs, seconds_ago: int) -> None:
    """Make it that long ago that all jobs were refused first."""
    since = datetime.now(UTC) - timedelta(seconds=seconds_ago)
    async with jobs.database.transaction() as session:
        await session.execute(update(OutboxJob).values(refused_since=since))


@pytest.mark.parametrize(("waited", "most"), [(0, 1), (10, 10), (3000, 60)])
async def test_a_job_of_another_release_is_offered_again_after_about_what_it_has_waited(
    jobs: Jobs, trial: Trial, waited: int, most: int, tmp_path: Path
) -> None:
    await jobs.enqueue(definitions.of_the_next_release, Note(file=tmp_path / "notes"))
    await refused(jobs, waited)
    before = datetime.now(UTC)
    await trial.run_all()
    took = datetime.now(UTC) - before

    [row] = await jobs.rows()
    assert row.due_at is not None
    assert timedelta(seconds=most / 2) <= row.due_at - before
    assert row.due_at - before <= timedelta(seconds=most) + 2 * took


async def test_a_job_that_no_release_knows_becomes_a_dead_letter_after_an_hour(
    jobs: Jobs, trial: Trial, tmp_path: Path
) -> None:
    await jobs.enqueue(definitions.of_the_next_release, Note(file=tmp_path / "notes"))
    await refused(jobs, 3000)
    await trial.run_all()
    assert not await jobs.letters()
    await refused(jobs, 3601)
    await trial.run_all()

    [letter] = await jobs.letters()
    assert letter.error == "UnknownJobError: there is no job 'tests.of_the_next_release'"


async def test_what_waits_for_a_job_of_the_next_release_keeps_its_turn(
    jobs: Jobs, trial: Trial, database: Database, tmp_path: Path
) -> None:
    for definition in (definitions.of_the_next_release, definitions.note):
        await jobs.enqueue(definition, Note(file=tmp_path / "notes"), ordering_key="one")
    [first, second] = await jobs.rows()

    async def take() -> list[Ticket]:
        async with database.transaction() as session:
            return list(await outbox.take_due(session, 9, timedelta(seconds=9)))

    assert await take() == [Ticket(first.id, 0)]
    await trial.runner().run(Ticket(first.id, 0))
    assert await take() == []
    await trial.runner(JOB_ROLLOUT_SECONDS=0).run(Ticket(first.id, 0))
    assert await take() == [Ticket(second.id, 0)]


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


async def test_a_try_that_the_workers_end_cuts_short_is_given_back(
    jobs: Jobs, trial: Trial, tmp_path: Path
) -> None:
    file = tmp_path / "notes"
    await jobs.enqueue(definitions.nap, Nap(file=file, seconds=60))
    [row] = await jobs.rows()
    for tries in range(1, 3):
        attempt = asyncio.create_task(trial.runner().run(Ticket(row.id, 0)))
        await eventually(lambda: asyncio.to_thread(notes, file), lambda ran: len(ran) == tries)  # noqa: B023
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt

        [row] = await jobs.rows()
        assert row.tries == 0
        assert row.due_at is not None
        assert row.due_at <= datetime.now(UTC)
    assert notes(file) == ["try 1", "try 1"]


async def test_a_handler_that_was_cancelled_by_something_else_fails(
    jobs: Jobs, trial: Trial, tmp_path: Path
) -> None:
    async def wait_for_something_cancelled(_: Note, __: JobContext) -> None:
        other = asyncio.create_task(asyncio.sleep(60))
        other.cancel()
        await other

    waiting = job(name="tests.waiting", payload=Note)(wait_for_something_cancelled)
    await jobs.enqueue(waiting, Note(file=tmp_path / "notes"))

    await trial.run_all(waiting)

    [letter] = await jobs.letters()
    assert letter.error == "HandlerCancelledError"
    assert "await other" in letter.traceback


async def test_an_error_that_no_database_takes_as_text_is_recorded(
    jobs: Jobs, trial: Trial, tmp_path: Path
) -> None:
    async def fail(_: Note, __: JobContext) -> None:
        raise ZeroDivisionError("\0 and \ud800")

    failing = job(name="tests.failing", payload=Note)(fail)
    await jobs.enqueue(failing, Note(file=tmp_path / "notes"))

    await trial.run_all(failing)

    [letter] = await jobs.letters()
    assert letter.error == r"ZeroDivisionError: \x00 and \ud800"


async def test_the_lease_of_a_job_in_hand_is_kept_and_no_other(
    jobs: Jobs, trial: Trial, tmp_path: Path
) -> None:
    file = tmp_path / "notes"
    await jobs.enqueue(definitions.nap, Nap(file=file, seconds=60))
    await jobs.enqueue(definitions.note, Note(file=file), delay=timedelta(seconds=60))
    runner = trial.runner(JOB_LEASE_SECONDS=0.4)
    [held, other] = await jobs.rows()
    tasks = [
        asyncio.create_task(runner.run(Ticket(held.id, 0))),
        asyncio.create_task(runner.keep_leases()),
    ]
    await eventually(lambda: asyncio.to_thread(notes, file), bool)
    # The first lease alone would end after less than half a second.
    enough = datetime.now(UTC) + timedelta(seconds=1.5)
    later = await eventually(jobs.rows, lambda rows: (rows[0].due_at or enough) > enough, 30)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)

    assert later[1].due_at == other.due_at


async def test_what_is_known_of_the_cause_is_known_to_the_logs_of_the_job(
    jobs: Jobs, trial: Trial, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}

    async def look(_: Note, __: JobContext) -> None:
        seen.update(structlog.contextvars.get_contextvars())

    looking = job(name="tests.looking", payload=Note)(look)
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with structlog.contextvars.bound_contextvars(
        request_id="cause-1", traceparent=trace, secret="not for others"
    ):
        await jobs.enqueue(looking, Note(file=tmp_path / "notes"), job_id="unique")

    await trial.run_all(looking)

    assert seen == {
        "request_id": "cause-1",
        "traceparent": trace,
        "job": "tests.looking",
        "job_id": "unique",
        "job_try": 1,
    }
    assert not structlog.contextvars.get_contextvars()


async def test_the_end_of_a_job_that_others_may_wait_for_wakes_the_relay(
    jobs: Jobs, settings: Settings, tmp_path: Path
) -> None:
    woken: list[int] = []
    ended = 0
    async with httpx2.AsyncClient() as client:
        runner = JobRunner(
            JobRegistry.of([definitions]),
            jobs.database,
            client,
            settings,
            wake_relay=lambda: woken.append(ended),
        )
        for ordering_key in ("one", None, "one"):
            await jobs.enqueue(
                definitions.note, Note(file=tmp_path / "notes"), ordering_key=ordering_key
            )
        for row in await jobs.rows():
            await runner.run(Ticket(row.id, row.tries))
            ended += 1

    assert woken == [0, 2]


async def test_a_ticket_that_is_delivered_twice_leaves_the_job_its_lease(
    jobs: Jobs, trial: Trial, tmp_path: Path
) -> None:
    file = tmp_path / "notes"
    await jobs.enqueue(definitions.nap, Nap(file=file, seconds=60))
    runner = trial.runner()
    [row] = await jobs.rows()
    running = asyncio.create_task(runner.run(Ticket(row.id, 0)))
    await eventually(lambda: asyncio.to_thread(notes, file), bool)
    await runner.run(Ticket(row.id, 0))
    is_kept = Ticket(row.id, 1) in runner._leases
    running.cancel()
    await asyncio.wait([running])

    assert is_kept
