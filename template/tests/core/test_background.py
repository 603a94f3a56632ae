"""Work beside the requests."""

import asyncio
from collections.abc import Callable

import anyio
import pytest
from structlog.contextvars import bound_contextvars, get_contextvars
from structlog.testing import capture_logs

from app.core.background import BackgroundRunner, RunnerClosedError
from app.core.settings import AppSettings


def make_runner(seconds: float = 5, concurrency: int = 10) -> BackgroundRunner:
    return BackgroundRunner(AppSettings(SHUTDOWN_TIMEOUT_SECONDS=seconds), concurrency)


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(5):
        while not condition():
            await asyncio.sleep(0.01)


async def test_at_exit_everything_spawned_is_finished() -> None:
    done: list[str] = []

    async def outer() -> None:
        await asyncio.sleep(0.05)
        runner.spawn("inner", inner)

    async def inner() -> None:
        await asyncio.sleep(0.05)
        done.append("inner")

    async with make_runner() as runner:
        runner.spawn("outer", outer)

    assert done == ["inner"]


async def test_a_burst_waits_in_line_and_none_is_dropped() -> None:
    running = most = done = 0

    async def job() -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        done += 1

    async with make_runner(concurrency=3) as runner:
        for _ in range(100):
            runner.spawn("job", job)

    assert (most, done) == (3, 100)


async def test_an_error_is_logged_with_its_traceback_and_harms_no_other() -> None:
    done: list[str] = []

    async def fail() -> None:
        raise LookupError("gone")

    async def succeed() -> None:
        done.append("succeed")

    with capture_logs() as logs:
        async with make_runner(concurrency=1) as runner:
            runner.spawn("fail", fail)
            runner.spawn("succeed", succeed)

    assert done == ["succeed"]
    [line] = logs
    assert (line["event"], line["task"]) == ("background_task_failed", "fail")
    assert line["exc_info"]


async def test_past_the_shutdown_timeout_the_rest_is_cancelled_and_named() -> None:
    cancelled: list[str] = []

    async def hang() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append("hang")
            raise

    async def commit() -> None:
        with anyio.CancelScope(shield=True):
            await asyncio.sleep(0.3)

    with capture_logs() as logs, anyio.fail_after(4):
        async with make_runner(seconds=0.1, concurrency=2) as runner:
            for name, job in (("hang", hang), ("commit", commit), ("queued", hang)):
                runner.spawn(name, job)

    assert cancelled == ["hang"]
    [line] = logs
    # What was shielded has finished, so it is not lost.
    assert (line["event"], line["tasks"]) == ("background_tasks_lost", ["hang", "queued"])


async def test_a_task_that_resists_its_cancellation_does_not_hold_up_the_exit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.core.background._CANCEL_GRACE_SECONDS", 0.1)
    released = asyncio.Event()

    async def resist() -> None:
        with anyio.CancelScope(shield=True):
            await released.wait()

    with capture_logs() as logs, anyio.fail_after(4):
        async with make_runner(seconds=0.1) as runner:
            runner.spawn("resist", resist)

    assert [line["tasks"] for line in logs] == [["resist"]]
    released.set()
    await asyncio.sleep(0)


async def test_after_the_exit_work_is_refused() -> None:
    async def job() -> None: ...

    async with make_runner() as runner:
        pass

    with capture_logs() as logs, pytest.raises(RunnerClosedError, match="late"):
        runner.spawn("late", job)
    assert [line["event"] for line in logs] == ["background_task_refused"]
    with pytest.raises(RunnerClosedError):
        runner.every(1, "late", job)


async def test_a_task_keeps_the_context_of_the_request_that_spawned_it() -> None:
    seen: list[object] = []

    async def job() -> None:
        seen.append(get_contextvars().get("request_id"))

    async with make_runner(concurrency=1) as runner:
        for request_id in ("a", "b"):
            with bound_contextvars(request_id=request_id):
                runner.spawn("job", job)

    assert seen == ["a", "b"]


async def test_a_periodic_job_survives_its_errors_and_ends_with_the_runner() -> None:
    runs = 0

    async def job() -> None:
        nonlocal runs
        runs += 1
        raise LookupError

    with capture_logs() as logs:
        async with make_runner() as runner:
            runner.every(0.01, "job", job)
            runner.every(3600, "rare", job)
            await until(lambda: runs >= 3)
        at_exit = runs

    await asyncio.sleep(0.05)
    assert runs == at_exit
    assert {line["event"] for line in logs} == {"background_task_failed"}


async def test_a_periodic_run_in_progress_is_finished_at_exit() -> None:
    steps: list[str] = []

    async def job() -> None:
        steps.append("begun")
        await asyncio.sleep(0.1)
        steps.append("finished")

    async with make_runner() as runner:
        runner.every(0.01, "job", job)
        await until(lambda: steps)

    assert steps == ["begun", "finished"]
