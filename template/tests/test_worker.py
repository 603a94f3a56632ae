import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
import structlog

from app.core.heartbeat import find_problem
from app.core.outbox import OutboxJob
from devtools.valkey import ValkeyServer
from tests.fixtures.jobs import Jobs, Work, eventually
from tests.jobs import definitions
from tests.jobs.definitions import Nap, Note

WORKER = "tests.jobs.worker"
# Short, so that tests need not wait long for what a dead worker had in hand.
SHORT_LEASE = {"JOB_LEASE_SECONDS": "3"}


def all_done(found: Sequence[OutboxJob]) -> bool:
    return all(row.done_at for row in found)


def _read_lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


async def lines(file: Path) -> list[str]:
    return _read_lines(file)


async def test_a_job_is_done_soon_after_its_commit(jobs: Jobs, work: Work, tmp_path: Path) -> None:
    async with work(module=WORKER):
        await jobs.enqueue(definitions.note, Note(file=tmp_path / "notes"))
        done = await eventually(jobs.rows, all_done, seconds=9)

    assert [(row.tries, row.due_at) for row in done] == [(1, None)]
    assert await lines(tmp_path / "notes") == ["done"]


async def test_at_sigterm_short_jobs_finish_and_long_ones_go_back_without_losing_a_try(
    jobs: Jobs, work: Work, tmp_path: Path
) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    async with work({"SHUTDOWN_TIMEOUT_SECONDS": "2"}, WORKER) as worker:
        await jobs.enqueue(definitions.nap, Nap(file=short, seconds=1))
        await jobs.enqueue(definitions.nap, Nap(file=long, seconds=30))
        for file in (short, long):
            await eventually(lambda: lines(file), lambda found: found == ["try 1"])  # noqa: B023
        assert await worker.stop() == 0, worker.logs()

    finished, returned = await jobs.rows()
    assert await lines(short) == ["try 1", "done"]
    assert finished.done_at is not None
    assert (returned.tries, returned.done_at) == (0, None)
    assert await lines(long) == ["try 1"]
    async with work(module=WORKER) as other:
        # Nobody waits for a lease of ten seconds: it is back in the queue.
        await eventually(lambda: lines(long), lambda found: found == ["try 1"] * 2, seconds=9)
        await other.kill()


async def test_the_jobs_of_a_killed_worker_are_done_by_another(
    jobs: Jobs, work: Work, tmp_path: Path
) -> None:
    files = [tmp_path / f"nap-{number}" for number in range(5)]
    async with work(SHORT_LEASE, WORKER) as doomed:
        for file in files:
            await jobs.enqueue(definitions.nap, Nap(file=file, seconds=1))
        await eventually(lambda: lines(files[0]), lambda found: found == ["try 1"])
        await doomed.kill()

    async with work(SHORT_LEASE, WORKER, ready=False):
        done = await eventually(jobs.rows, all_done)

    assert len(done) == len(files)
    for file in files:
        assert (await lines(file))[-1] == "done"


async def test_a_job_that_runs_longer_than_a_lease_runs_once(
    jobs: Jobs, work: Work, tmp_path: Path
) -> None:
    file = tmp_path / "nap"
    async with work(SHORT_LEASE, WORKER, ready=False), work(SHORT_LEASE, WORKER):
        await jobs.enqueue(definitions.nap, Nap(file=file, seconds=4))
        await eventually(jobs.rows, all_done)

    assert await lines(file) == ["try 1", "done"]


async def test_jobs_with_one_ordering_key_run_one_after_the_other(
    jobs: Jobs, work: Work, tmp_path: Path
) -> None:
    file = tmp_path / "notes"
    async with work(module=WORKER, ready=False), work(module=WORKER):
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


async def test_a_job_that_kills_its_worker_ends_in_the_dead_letters(
    jobs: Jobs, work: Work, tmp_path: Path
) -> None:
    await jobs.enqueue(definitions.deadly, Note(file=tmp_path / "notes"))
    for _ in range(2):
        async with work(SHORT_LEASE, WORKER, ready=False) as worker:
            await worker.wait()
    async with work(SHORT_LEASE, WORKER, ready=False):
        [letter] = await eventually(jobs.letters, bool)

    assert letter.error.startswith("WorkerLostError")
    assert await lines(tmp_path / "notes") == ["tried"] * 2


async def test_the_log_of_a_job_carries_the_id_of_the_request_that_caused_it(
    jobs: Jobs, work: Work, tmp_path: Path
) -> None:
    with structlog.contextvars.bound_contextvars(request_id="cause-1"):
        await jobs.enqueue(definitions.note, Note(file=tmp_path / "notes"))
    async with work(module=WORKER, ready=False) as worker:
        await eventually(jobs.rows, all_done)

    logged = [json.loads(line) for line in worker.logs().splitlines()]
    [line] = [line for line in logged if line["event"] == "job_done"]
    assert (line["request_id"], line["job"], line["job_try"]) == ("cause-1", "tests.note", 1)


async def test_work_goes_on_after_redis_was_restarted_empty(
    jobs: Jobs, work: Work, tmp_path: Path, private_redis: ValkeyServer
) -> None:
    env = {**SHORT_LEASE, "REDIS_URL": private_redis.start().url()}
    async with work(env, WORKER) as worker:
        for number in range(30):
            file = tmp_path / f"nap-{number}"
            await jobs.enqueue(definitions.nap, Nap(file=file, seconds=0.3))
        await eventually(lambda: lines(tmp_path / "nap-0"), bool)
        private_redis.kill()
        await anyio.sleep(1)
        private_redis.start()

        await eventually(jobs.rows, all_done)
        assert worker.process.poll() is None


async def test_a_worker_starts_before_redis_does(
    jobs: Jobs, work: Work, tmp_path: Path, private_redis: ValkeyServer
) -> None:
    await jobs.enqueue(definitions.note, Note(file=tmp_path / "notes"))
    server = private_redis.start()
    private_redis.kill()
    async with work({"REDIS_URL": server.url()}, WORKER, ready=False) as worker:
        await eventually(lambda: check(worker.heartbeat, "live"), lambda problem: not problem)
        assert "queue" in await check(worker.heartbeat, "ready")
        private_redis.start()
        await eventually(jobs.rows, all_done)
        await eventually(lambda: check(worker.heartbeat, "ready"), lambda problem: not problem)


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


async def test_the_check_is_true_for_a_living_a_stopped_a_killed_and_a_missing_worker(
    work: Work, tmp_path: Path
) -> None:
    async with work() as worker:
        assert not await check(worker.heartbeat, "ready")
        assert not await check(worker.heartbeat, "live")
        await worker.kill()
        # ARQ's own answer would be that all is well until its key expires.
        assert "is gone" in await check(worker.heartbeat, "live")
        assert "is gone" in await check(worker.heartbeat, "ready")
    assert "no heartbeat" in await check(tmp_path / "none", "live")


async def test_a_worker_that_is_about_to_end_is_alive_and_not_ready(
    jobs: Jobs, work: Work, tmp_path: Path
) -> None:
    file = tmp_path / "nap"
    async with work(module=WORKER) as worker:
        await jobs.enqueue(definitions.nap, Nap(file=file, seconds=3))
        await eventually(lambda: lines(file), bool)
        worker.process.terminate()

        async def readiness() -> str | None:
            return find_problem(worker.heartbeat, ready=True)

        await eventually(readiness, lambda problem: "about to end" in (problem or ""))
        assert find_problem(worker.heartbeat, ready=False) is None
        assert await worker.wait() == 0
    assert (await lines(file))[-1] == "done"
