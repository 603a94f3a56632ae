"""The delivery of events to their subscribers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

import anyio
import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from structlog.contextvars import bound_contextvars, get_contextvars
from structlog.testing import capture_logs

from app.core.background import BackgroundRunner
from app.core.events import Event, EventBus, record, take_recorded
from app.core.settings import AppSettings


class Happened(Event):
    name: ClassVar[str] = "thing.happened"

    number: int = 1


class Special(Happened):
    name: ClassVar[str] = "thing.special"


class BusyError(Exception):
    """What the tests take for a temporary failure of the database."""


@asynccontextmanager
async def open_transaction() -> AsyncIterator[AsyncSession]:
    async with AsyncSession() as session:
        yield session


def is_transient(error: BaseException) -> bool:
    return isinstance(error, BusyError)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.core.events._FIRST_DELAY_SECONDS", 0.001)


async def test_each_handler_gets_the_event_and_a_session_of_its_own() -> None:
    calls: list[tuple[str, int]] = []
    sessions: list[AsyncSession] = []

    async def first(event: Happened, session: AsyncSession) -> None:
        calls.append(("first", event.number))
        sessions.append(session)

    async def second(event: Happened, session: AsyncSession) -> None:
        calls.append(("second", event.number))
        sessions.append(session)

    async with BackgroundRunner(AppSettings()) as runner:
        bus = EventBus(runner)
        bus.subscribe(Happened, first)
        bus.subscribe(Happened, second)
        bus.dispatch([Happened(number=7), Special()], open_transaction, is_transient)

    assert sorted(calls) == [("first", 7), ("second", 7)]
    assert sessions[0] is not sessions[1]


async def test_a_handler_that_fails_is_logged_and_the_others_still_run() -> None:
    calls: list[str] = []

    async def fail(event: Happened, session: AsyncSession) -> None:
        calls.append("fail")
        raise LookupError

    async def succeed(event: Happened, session: AsyncSession) -> None:
        calls.append("succeed")

    with capture_logs() as logs:
        async with BackgroundRunner(AppSettings()) as runner:
            bus = EventBus(runner)
            bus.subscribe(Happened, fail)
            bus.subscribe(Happened, succeed)
            bus.dispatch([Happened()], open_transaction, is_transient)

    assert sorted(calls) == ["fail", "succeed"]
    [line] = logs
    assert (line["event"], line["event_name"]) == ("event_handler_failed", "thing.happened")
    assert line["exc_info"]


@pytest.mark.parametrize(("failures", "last"), [(2, "event_handler_retried"), (99, "_failed")])
async def test_at_exit_a_temporary_failure_is_tried_again_a_few_times(
    failures: int, last: str
) -> None:
    attempts = 0

    async def handle(event: Happened, session: AsyncSession) -> None:
        nonlocal attempts
        attempts += 1
        if attempts <= failures:
            raise BusyError

    with capture_logs() as logs:
        async with BackgroundRunner(AppSettings()) as runner:
            bus = EventBus(runner)
            bus.subscribe(Happened, handle)
            bus.dispatch([Happened()], open_transaction, is_transient)

    assert attempts == min(failures + 1, 5)
    assert logs[-1]["event"].endswith(last)


@pytest.mark.parametrize(("patience", "attempts"), [(60, 21), (0, 1)])
async def test_a_temporary_failure_is_tried_again_for_as_long_as_patience_lasts(
    monkeypatch: pytest.MonkeyPatch, patience: float, attempts: int
) -> None:
    monkeypatch.setattr("app.core.events._LONGEST_DELAY_SECONDS", 0.01)
    monkeypatch.setattr("app.core.events._PATIENCE_SECONDS", patience)
    made = 0
    ended = anyio.Event()

    async def handle(event: Happened, session: AsyncSession) -> None:
        nonlocal made
        made += 1
        if made in {21, attempts}:
            ended.set()
        if made <= 20:
            raise BusyError

    async with BackgroundRunner(AppSettings()) as runner:
        bus = EventBus(runner)
        bus.subscribe(Happened, handle)
        bus.dispatch([Happened()], open_transaction, is_transient)
        with anyio.fail_after(10):
            await ended.wait()
            await asyncio.sleep(0.05)

    assert made == attempts


async def test_handlers_that_wait_for_their_next_attempt_are_in_nobody_s_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.core.events._FIRST_DELAY_SECONDS", 60)
    monkeypatch.setattr("app.core.events._LONGEST_DELAY_SECONDS", 60)
    failed: set[int] = set()
    healthy = anyio.Event()

    async def fail_once(event: Happened, session: AsyncSession) -> None:
        if event.number not in failed:
            failed.add(event.number)
            raise BusyError

    async def succeed(event: Special, session: AsyncSession) -> None:
        healthy.set()

    with capture_logs() as logs, anyio.fail_after(10):
        async with BackgroundRunner(AppSettings(), max_concurrency=2) as runner:
            bus = EventBus(runner)
            bus.subscribe(Happened, fail_once)
            bus.subscribe(Special, succeed)
            happened = [Happened(number=number) for number in range(5)]
            bus.dispatch([*happened, Special()], open_transaction, is_transient)
            await healthy.wait()
            while len(logs) < len(happened):
                await asyncio.sleep(0.01)

    # The wait of a minute has ended with the beginning of exit, and none was lost.
    assert {line["event"] for line in logs} == {"event_handler_retried"}


async def test_a_handler_keeps_the_request_id() -> None:
    seen: list[object] = []

    async def handle(event: Happened, session: AsyncSession) -> None:
        seen.append(get_contextvars().get("request_id"))

    async with BackgroundRunner(AppSettings()) as runner:
        bus = EventBus(runner)
        bus.subscribe(Happened, handle)
        with bound_contextvars(request_id="r-1"):
            bus.dispatch([Happened()], open_transaction, is_transient)

    assert seen == ["r-1"]


async def test_what_was_recorded_is_taken_once() -> None:
    async with AsyncSession() as session:
        record(session, Happened())

        assert take_recorded(session) == [Happened()]
        assert take_recorded(session) == []
