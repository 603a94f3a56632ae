"""What somebody's handler does costs its own job, neither its neighbours nor the worker."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from anyio.from_thread import start_blocking_portal
from sqlalchemy import update
from structlog.testing import capture_logs

from app.core import job_task, outbox
from app.core.background import BackgroundRunner
from app.core.database import Database
from app.core.events import EventBus
from app.core.heartbeat import find_problem
from app.core.job_leases import JobLeases
from app.core.job_runner import JobRunner
from app.core.jobs import Job, JobContext, JobRegistry, RetryPolicy, job
from app.core.outbox import OutboxJob, Ticket
from app.settings import Settings
from tests.fixtures.jobs import Jobs, Work, eventually
from tests.jobs import definitions
from tests.jobs.definitions import QUICKLY, Note

Handle = Callable[[Note, JobContext], Awaitable[None]]
HASTY_WORKER = "tests.jobs.hasty_worker"


def a_job(handle: Handle, name: str = "tests.it", **options: Any) -> Job[Note]:
    return job(name=name, payload=Note, retry=QUICKLY, **options)(handle)


def a_runner(jobs: Jobs, settings: Settings, *known: Job[Any], **changes: Any) -> JobRunner:
    registry = JobRegistry({each.name: each for each in known}, ())
    changed = settings.model_copy(update=changes)
    return JobRunner(registry, jobs.database, httpx2.AsyncClient(), changed)


async def change(jobs: Jobs, **values: Any) -> None:
    async with jobs.database.transaction() as session:
        await session.execute(update(OutboxJob).values(**values))


async def count_stuck(runner: JobRunner) -> int:
    return runner.stuck


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_task, "GRACE_SECONDS", 0.1)


@pytest.fixture
def payload(tmp_path: Path) -> Note:
    return Note(file=tmp_path / "notes")


async def test_who_blocks_the_event_loop_beyond_a_lease_loses_neither_its_job_nor_others(
    jobs: Jobs, settings: Settings, payload: Note
) -> None:
    lease, taken = 2.5, list[Ticket]()

    async def take() -> None:
        """Be another worker's relay, with an event loop of its own."""
        others = jobs.database.twin()
        for _ in range(40):
            async with others.transaction() as session:
                taken.extend(await outbox.take_due(session, 9, timedelta(seconds=9)))
            await asyncio.sleep(0.1)
        await others.close()

    async def block(_: Note, __: JobContext) -> None:
        # Its neighbour has begun.
        await running.wait()
        with start_blocking_portal() as portal:
            portal.call(take)

    async def wait(_: Note, __: JobContext) -> None:
        running.set()
        await blocked.wait()

    running, blocked = asyncio.Event(), asyncio.Event()
    blocking, waiting = a_job(block, "tests.block"), a_job(wait, "tests.wait")
    runner = a_runner(jobs, settings, blocking, waiting, JOB_LEASE_SECONDS=lease)
    for each in (blocking, waiting):
        await jobs.enqueue(each, payload)
    tasks = [asyncio.create_task(runner.run(Ticket(row.id, 0))) for row in await jobs.rows()]
    keeping = asyncio.create_task(runner.keep_leases())
    await tasks[0]
    blocked.set()
    await tasks[1]
    keeping.cancel()
    await asyncio.wait([keeping])

    assert taken == []
    assert all(row.done_at for row in await jobs.rows())


async def test_a_lost_worker_counts_apart_from_a_failure(
    jobs: Jobs, settings: Settings, payload: Note
) -> None:
    async def fail(_: Note, __: JobContext) -> None:
        raise ValueError

    failing = a_job(fail, retry_on=(ValueError,))
    runner = a_runner(jobs, settings, failing)
    await jobs.enqueue(failing, payload)
    for lost in (5, 9):
        await change(jobs, tries=lost, failures=0)
        [row] = await jobs.rows()
        await runner.run(Ticket(row.id, lost))
        assert not await jobs.letters()
    await change(jobs, tries=12, failures=2)
    [row] = await jobs.rows()
    await runner.run(Ticket(row.id, 12))

    [letter] = await jobs.letters()
    assert letter.error == "WorkerLostError: no outcome of 10 of its 12 tries"


async def test_what_has_lost_several_workers_runs_alone(
    jobs: Jobs, settings: Settings, payload: Note
) -> None:
    async def pass_by(note: Note, _: JobContext) -> None:
        inside.append(note.text)
        await gates[note.text].wait()
        inside.remove(note.text)

    inside: list[str] = []
    gates = {text: asyncio.Event() for text in ("first", "suspect", "last")}
    passing = a_job(pass_by)
    runner = a_runner(jobs, settings, passing)
    for text in gates:
        await jobs.enqueue(passing, payload.model_copy(update={"text": text}))
    first, suspect, last = await jobs.rows()
    async with jobs.database.transaction() as session:
        lost = update(OutboxJob).where(OutboxJob.id == suspect.id).values(tries=4, failures=1)
        await session.execute(lost)
    async with jobs.database.transaction() as session:
        tickets = await outbox.take_due(session, 9, timedelta(seconds=60))
    assert {ticket.id: ticket.suspect for ticket in tickets} == {
        first.id: False,
        suspect.id: True,
        last.id: False,
    }

    async def seen() -> list[str]:
        return list(inside)

    tasks = []
    for id_ in (first.id, suspect.id, last.id):
        [ticket] = [each for each in tickets if each.id == id_]
        tasks.append(asyncio.create_task(runner.run(ticket)))
        await eventually(seen, lambda found: found == ["first"])
    gates["first"].set()
    await eventually(seen, lambda found: found == ["suspect"])
    # Nor has it begun a try, which the suspect would take along.
    assert [row.tries for row in await jobs.rows()] == [1, 5, 0]
    gates["suspect"].set()
    await eventually(seen, lambda found: found == ["last"])
    gates["last"].set()
    await asyncio.gather(*tasks)

    assert all(row.done_at for row in await jobs.rows())


async def test_who_does_not_end_when_cancelled_is_given_up_and_makes_the_worker_unhealthy(
    jobs: Jobs, settings: Settings, payload: Note, hasty: None
) -> None:
    async def swallow(_: Note, context: JobContext) -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError as error:
                cancelled.append(error)
        await definitions.note.enqueue(context.session, payload)

    cancelled: list[BaseException] = []
    released = asyncio.Event()
    swallowing = a_job(swallow, timeout_seconds=0.05)
    runner = a_runner(jobs, settings, swallowing)
    await jobs.enqueue(swallowing, payload)
    [row] = await jobs.rows()

    await runner.run(Ticket(row.id, 0))

    [letter] = await jobs.letters()
    assert letter.error.startswith("HandlerStuckError")
    assert runner.stuck == 1
    # Nor does anybody go on cancelling it, which would keep a core busy.
    rounds = len(cancelled)
    await asyncio.sleep(0.05)
    assert len(cancelled) == rounds
    released.set()
    await eventually(lambda: count_stuck(runner), lambda found: found == 0)
    # It comes too late: what it has written is rolled back.
    assert not await jobs.rows()


async def test_a_worker_outlives_exits_and_ends_although_a_job_and_its_thread_do_not(
    jobs: Jobs, work: Work, payload: Note
) -> None:
    async with work({"SHUTDOWN_TIMEOUT_SECONDS": "1"}, HASTY_WORKER) as worker:
        await jobs.enqueue(definitions.exit_in_a_task, payload)
        await eventually(jobs.letters, bool)
        await jobs.enqueue(definitions.stubborn, payload)
        exited, stubborn = await eventually(jobs.letters, lambda found: len(found) == 2)

        async def problem() -> str:
            return find_problem(worker.heartbeat, ready=False) or ""

        await eventually(problem, lambda found: "do not end" in found)
        worker.process.terminate()
        assert await worker.wait() == 1, worker.logs()

    assert exited.error == "HandlerExitedError: SystemExit: done"
    assert stubborn.error.startswith("HandlerStuckError")
    logged = {line["event"]: line for line in worker.lines()}
    assert "SystemExit" in logged["exit_in_a_task_ignored"]["exception"]
    end = logged["worker_ended_by_force"]
    assert (end["tasks"], end["threads"]) == (["tests.stubborn"], ["endless"])


class SpeechlessError(Exception):
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        raise TypeError


class BareError(BaseException):
    """An error that few catch."""


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SystemExit("no"), "HandlerExitedError: SystemExit: no"),
        (KeyboardInterrupt(), "HandlerExitedError: KeyboardInterrupt"),
        (BareError("no"), "HandlerExitedError: BareError: no"),
        (
            BaseExceptionGroup("two", [SystemExit(), ValueError("no")]),
            "HandlerExitedError: BaseExceptionGroup: two (2 sub-exceptions)",
        ),
        (SpeechlessError(), "SpeechlessError: (its text cannot be read)"),
    ],
)
async def test_any_error_becomes_a_dead_letter_at_its_first_try(
    jobs: Jobs, settings: Settings, payload: Note, error: BaseException, text: str
) -> None:
    async def fail(_: Note, __: JobContext) -> None:
        raise error

    failing = a_job(fail)
    await jobs.enqueue(failing, payload)
    [row] = await jobs.rows()

    await a_runner(jobs, settings, failing).run(Ticket(row.id, 0))

    [letter] = await jobs.letters()
    assert (letter.error, letter.tries) == (text, 1)
    assert type(error).__name__ in letter.traceback


async def test_who_cancels_itself_fails_rather_than_being_given_back_for_ever(
    jobs: Jobs, settings: Settings, payload: Note
) -> None:
    async def cancel_itself(_: Note, __: JobContext) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    cancelling = a_job(cancel_itself)
    await jobs.enqueue(cancelling, payload)
    [row] = await jobs.rows()

    await a_runner(jobs, settings, cancelling).run(Ticket(row.id, 0))

    [letter] = await jobs.letters()
    assert (letter.error, letter.tries) == ("HandlerCancelledError", 1)


async def test_a_handler_of_dead_letters_that_does_not_end_cannot_prevent_them(
    jobs: Jobs, settings: Settings, payload: Note, hasty: None
) -> None:
    async def fail(_: Note, __: JobContext) -> None:
        raise ZeroDivisionError

    async def swallow(_: Note, __: Any) -> None:
        while not released.is_set():
            with suppress(asyncio.CancelledError):
                await released.wait()

    released = asyncio.Event()
    failing = a_job(fail, timeout_seconds=0.05)
    failing.on_dead_letter(swallow)
    await jobs.enqueue(failing, payload)
    [row] = await jobs.rows()

    runner = a_runner(jobs, settings, failing)
    await runner.run(Ticket(row.id, 0))
    assert runner.stuck == 1
    released.set()
    await eventually(lambda: count_stuck(runner), lambda found: found == 0)

    [letter] = await jobs.letters()
    assert letter.error == "ZeroDivisionError"


async def test_an_error_of_megabytes_is_logged_and_stored_in_part(
    jobs: Jobs, settings: Settings, payload: Note
) -> None:
    async def fail(_: Note, __: JobContext) -> None:
        raise ZeroDivisionError("x" * 5_000_000)

    failing = a_job(fail)
    await jobs.enqueue(failing, payload)
    [row] = await jobs.rows()

    with capture_logs() as logged:
        await a_runner(jobs, settings, failing).run(Ticket(row.id, 0))

    assert len(str(logged)) < 50_000
    [letter] = await jobs.letters()
    assert letter.error.startswith("ZeroDivisionError: xxx")
    assert len(letter.error + letter.traceback) < 50_000


async def test_failures_that_an_earlier_release_has_not_counted_lose_no_job(
    jobs: Jobs, settings: Settings, payload: Note
) -> None:
    async def work(_: Note, __: JobContext) -> None:
        pass

    patient = job(name="tests.it", payload=Note, retry=RetryPolicy(max_tries=30))(work)
    await jobs.enqueue(patient, payload)
    await change(jobs, tries=12, failures=0)
    [row] = await jobs.rows()

    await a_runner(jobs, settings, patient).run(Ticket(row.id, 12))

    assert await jobs.letters() == []
    assert [row.done_at is not None for row in await jobs.rows()] == [True]


async def test_the_time_for_which_another_blocks_the_event_loop_does_not_count() -> None:
    async def work() -> None:
        for _ in range(10):
            begun.set()
            await asyncio.sleep(0.01)

    begun = asyncio.Event()
    task = asyncio.create_task(job_task.HandlerTasks().run("tests.it", work, 1))
    await begun.wait()
    # As a neighbour might, for longer than the task may take.
    time.sleep(1.2)  # noqa: ASYNC251

    await task


async def test_leases_that_could_not_be_renewed_are_renewed_as_soon_as_they_can(
    jobs: Jobs, settings: Settings, payload: Note
) -> None:
    async def work(_: Note, __: JobContext) -> None:
        await asyncio.Event().wait()

    hurried = settings.model_copy(update={"DB_LOCK_TIMEOUT_SECONDS": 0.1})
    database = Database(hurried, EventBus(BackgroundRunner(hurried)))
    await jobs.enqueue(a_job(work), payload)
    [row] = await jobs.rows()
    leases = JobLeases(database, 8)
    leases.hold(Ticket(row.id, 0), 60)
    failed_at: list[float] = []

    def note(_: Any, __: str, line: Any) -> Any:
        failed_at.append(time.monotonic())
        return line

    with capture_logs(processors=[note]):
        async with jobs.database.transaction() as session:
            # Nobody else can change it meanwhile.
            await session.execute(update(OutboxJob).values(failures=0))
            keeping = asyncio.create_task(leases.keep())
            while len(failed_at) < 2:
                await asyncio.sleep(0.05)
    keeping.cancel()
    await asyncio.wait([keeping])
    await database.close()

    # Instead of two seconds, a quarter of the lease.
    assert failed_at[1] - failed_at[0] < 1.5


async def test_a_lease_is_not_renewed_beyond_the_time_it_is_held_for(
    jobs: Jobs, database: Database, payload: Note
) -> None:
    await jobs.enqueue(definitions.note, payload)
    [row] = await jobs.rows()
    leases = JobLeases(database, 60)
    due_at = []
    for seconds in (0, 60):
        leases.hold(Ticket(row.id, 0), seconds)
        await leases._renew(database)
        due_at += [each.due_at for each in await jobs.rows()]

    assert due_at[0] == row.due_at
    assert due_at[1] != row.due_at
