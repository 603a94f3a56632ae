import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from sqlalchemy import update

from app import domain_resources, worker_lifespan
from app.core.heartbeat import find_problem
from app.core.outbox import OutboxJob
from devtools.valkey import ValkeyServer
from tests.fixtures.jobs import Jobs, Work, WorkHere, eventually
from tests.jobs import definitions
from tests.jobs.definitions import Nap, Note

WORKER = "tests.jobs.worker"
# Short, so that tests need not wait long for what a dead worker had in hand. Not so short that a
# worker on a busy machine is taken for dead.
LEASE = 3
SHORT_LEASE = {"JOB_LEASE_SECONDS": str(LEASE)}


def all_done(found: Sequence[OutboxJob]) -> bool:
    return all(row.done_at for row in found)


def _read_lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


async def lines(file: Path) -> list[str]:
    return _read_lines(file)


async def problem(heartbeat: Path, *, ready: bool) -> str:
    return find_problem(heartbeat, ready=ready) or ""


async def check(heartbeat: Path, question: str) -> str:
    """What the probe's command says, run as the platform would run it; nothing when all is well."""
    result = await anyio.run_process(
        [sys.executable, "-m", "app.worker", "--check", question],
        check=False,
        env={"WORKER_HEARTBEAT_FILE": str(heartbeat), "PATH": ""},
        cwd=Path(__file__).parents[1],
        stderr=subprocess.STDOUT,
    )
    output = result.stdout.decode()
    assert (result.returncode == 0) is (not output), output
    return output


async def test_a_worker_does_jobs_soon_logs_their_cause_and_is_ready_until_it_is_killed(
    jobs: Jobs, work: Work, tmp_path: Path
) -> None:
    async with work(module=WORKER) as worker:
        with structlog.contextvars.bound_contextvars(request_id="cause-1"):
            await jobs.enqueue(definitions.note, Note(file=tmp_path / "notes"))
        [done] = await eventually(jobs.rows, all_done)
        assert not await check(worker.heartbeat, "ready")
        assert not await check(worker.heartbeat, "live")
        await worker.kill()
        # ARQ's own answer would be that all is well until its key expires.
        assert "is gone" in await check(worker.heartbeat, "live")
        assert "is gone" in await check(worker.heartbeat, "ready")

    assert (done.tries, done.due_at) == (1, None)
    assert await lines(tmp_path / "notes") == ["done"]
    [line] = worker.lines(event="job_done")
    assert (line["request_id"], line["job"], line["job_try"]) == ("cause-1", "tests.note", 1)


async def test_at_sigterm_short_jobs_finish_and_long_ones_go_back_without_losing_a_try(
    jobs: Jobs, work: Work, work_here: WorkHere, tmp_path: Path
) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    async with work({"SHUTDOWN_TIMEOUT_SECONDS": "3"}, WORKER) as worker:
        await jobs.enqueue(definitions.nap, Nap(file=short, seconds=1.5))
        await jobs.enqueue(definitions.nap, Nap(file=long, seconds=60))
        for file in (short, long):
            await eventually(lambda: lines(file), lambda found: found == ["try 1"])  # noqa: B023
        worker.process.terminate()
        # It gets no more work, and nobody kills it for that.
        await eventually(
            lambda: problem(worker.heartbeat, ready=True), lambda found: "about to end" in found
        )
        assert not await problem(worker.heartbeat, ready=False)
        assert await worker.wait() == 0, worker.logs()

    finished, returned = await jobs.rows()
    assert await lines(short) == ["try 1", "done"]
    assert finished.done_at is not None
    assert (returned.tries, returned.done_at) == (0, None)
    assert await lines(long) == ["try 1"]
    # Nobody waits for a lease: it is back in the queue.
    async with work_here(JOB_LEASE_SECONDS=600, SHUTDOWN_TIMEOUT_SECONDS=1):
        await eventually(lambda: lines(long), lambda found: found == ["try 1"] * 2)
    assert [row.tries for row in await jobs.rows()] == [1, 0]


async def test_the_jobs_of_a_killed_worker_are_done_by_another(
    jobs: Jobs, work: Work, work_here: WorkHere, tmp_path: Path
) -> None:
    files = [tmp_path / f"nap-{number}" for number in range(5)]
    async with work(SHORT_LEASE, WORKER) as doomed:
        for file in files:
            await jobs.enqueue(definitions.nap, Nap(file=file, seconds=1))
        await eventually(lambda: lines(files[0]), lambda found: found == ["try 1"])
        await doomed.kill()

    async with work_here(JOB_LEASE_SECONDS=LEASE):
        done = await eventually(jobs.rows, all_done)

    assert len(done) == len(files)
    assert done[0].tries == 2
    for file in files:
        assert (await lines(file))[-1] == "done"


async def test_a_job_that_kills_its_worker_ends_in_the_dead_letters(
    jobs: Jobs, work: Work, tmp_path: Path
) -> None:
    env = {"JOB_LEASE_SECONDS": "1"}
    async with jobs.database.transaction() as session:
        await definitions.deadly.enqueue(session, Note(file=tmp_path / "notes"))
        # What nine workers before would have left.
        await session.execute(update(OutboxJob).values(tries=9))
    # One of them begins it and dies; the other finds that it has lost too many.
    async with work(env, WORKER, ready=False), work(env, WORKER, ready=False):
        [letter] = await eventually(jobs.letters, bool)

    assert letter.error == "WorkerLostError: no outcome of 10 of its 10 tries"
    assert await lines(tmp_path / "notes") == ["tried"]


async def test_a_job_that_no_worker_knows_is_offered_again_and_given_up_in_the_end(
    jobs: Jobs, work_here: WorkHere, tmp_path: Path
) -> None:
    async with work_here(JOB_ROLLOUT_SECONDS=1, JOB_LEASE_SECONDS=600):
        await jobs.enqueue(definitions.of_the_next_release, Note(file=tmp_path / "notes"))
        # Not within its first second, and nobody waits for a lease in between.
        [letter] = await eventually(jobs.letters, bool)

    assert letter.error.startswith("UnknownJobError")


async def test_a_job_that_runs_longer_than_a_lease_runs_once(
    jobs: Jobs, work_here: WorkHere, tmp_path: Path
) -> None:
    file = tmp_path / "nap"
    async with work_here(JOB_LEASE_SECONDS=2), work_here(JOB_LEASE_SECONDS=2):
        await jobs.enqueue(definitions.nap, Nap(file=file, seconds=3.5))
        await eventually(jobs.rows, all_done)

    assert await lines(file) == ["try 1", "done"]


async def test_jobs_with_one_ordering_key_run_one_after_the_other(
    jobs: Jobs, work_here: WorkHere, tmp_path: Path
) -> None:
    file = tmp_path / "notes"
    async with work_here(), work_here():
        for number in range(10):
            job, payload = (
                (definitions.nap, Nap(file=file, seconds=0.2, text=str(number)))
                if number % 3 == 0
                else (definitions.note, Note(file=file, text=str(number)))
            )
            await jobs.enqueue(job, payload, ordering_key="one")
        await eventually(jobs.rows, all_done)

    notes = [line for line in await lines(file) if line.isdecimal()]
    assert notes == [str(number) for number in range(10)]


async def test_own_resources_are_open_for_as_long_as_jobs_run(
    jobs: Jobs, work_here: WorkHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "notes"

    @asynccontextmanager
    async def open_one_more(*arguments: Any) -> AsyncIterator[dict[str, Any]]:
        async with domain_resources.open_resources(*arguments) as own:
            yield {**own, "sample": "open"}
        Note(file=file).write("closed")

    monkeypatch.setattr("app.worker_lifespan.open_resources", open_one_more)
    async with work_here():
        await jobs.enqueue(definitions.show_state, Note(file=file, text="sample"))
        await eventually(jobs.rows, all_done)
    assert await lines(file) == ["open", "closed"]


async def test_work_goes_on_after_redis_was_restarted_empty(
    jobs: Jobs, work_here: WorkHere, tmp_path: Path, private_redis: ValkeyServer
) -> None:
    files = [tmp_path / f"nap-{number}" for number in range(30)]
    url = private_redis.start().url()
    async with work_here(JOB_LEASE_SECONDS=LEASE, REDIS_URL=url) as worker:
        for file in files:
            await jobs.enqueue(definitions.nap, Nap(file=file, seconds=0.3))
        await eventually(lambda: lines(files[0]), bool)
        private_redis.kill()
        # Long enough for the worker to notice.
        await anyio.sleep(0.5)
        private_redis.start()

        done = await eventually(jobs.rows, all_done)
        assert not worker.task.done()

    assert len(done) == len(files)


async def test_a_worker_starts_before_redis_does(
    jobs: Jobs, work_here: WorkHere, tmp_path: Path, private_redis: ValkeyServer
) -> None:
    await jobs.enqueue(definitions.note, Note(file=tmp_path / "notes"))
    url = private_redis.start().url()
    private_redis.kill()
    async with work_here(REDIS_URL=url) as worker:
        heartbeat = worker.heartbeat
        await eventually(lambda: problem(heartbeat, ready=False), lambda found: not found)
        assert "does not reach its queue" in await problem(heartbeat, ready=True)
        private_redis.start()
        await eventually(jobs.rows, all_done)
        await eventually(lambda: problem(heartbeat, ready=True), lambda found: not found)


async def test_a_worker_that_cannot_show_that_it_is_alive_ends(
    work_here: WorkHere, tmp_path: Path
) -> None:
    has_ended = False
    with pytest.raises(IsADirectoryError):
        async with work_here(WORKER_HEARTBEAT_FILE=tmp_path) as worker:
            await asyncio.wait([worker.task], timeout=30)
            has_ended = worker.task.done()

    assert has_ended


async def test_a_worker_ends_although_what_runs_beside_the_jobs_misses_its_cancellation(
    work_here: WorkHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def miss_it_once(*_: object) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        await asyncio.sleep(3600)

    monkeypatch.setattr(worker_lifespan, "listen", miss_it_once)

    async with work_here() as worker:
        await eventually(partial(problem, worker.heartbeat, ready=True), lambda found: not found)

    assert worker.task.done()


async def test_a_worker_without_a_place_for_its_heartbeat_says_so_and_does_not_start(
    work: Work, tmp_path: Path
) -> None:
    file = tmp_path / "missing" / "heartbeat.json"
    async with work({"WORKER_HEARTBEAT_FILE": str(file)}, ready=False) as worker:
        assert await worker.wait() == 1
    [line] = worker.logs().splitlines()
    assert line.startswith("The worker cannot start")
    assert "WORKER_HEARTBEAT_FILE: name a file in a folder that can be written" in line
