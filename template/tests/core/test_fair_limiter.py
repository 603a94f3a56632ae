"""The limit for expensive work: turns by group, and an early no to what cannot be served."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.requests import HTTPConnection

from app.core.fair_limiter import FairLimiter, OverloadedError, subscriber_of


class Work:
    """What waits for its turn; it goes on until it is told to end."""

    def __init__(self, running: int, waiting: int) -> None:
        self.limiter = FairLimiter(running, waiting)
        self.began: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.refused: dict[str, str] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def start(self, *names: str) -> None:
        """Start some: the first letter is the group."""
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._run(name))
            await settled()

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
            await asyncio.wait([self.tasks[name]])
            await settled()

    async def _run(self, name: str) -> None:
        try:
            async with self.limiter.turn(name[0]):
                self.began.append(name)
                await self._ends[name].wait()
        except OverloadedError as error:
            self.refused[name] = (error.headers or {})["Retry-After"]


async def settled() -> None:
    """Let every task go on until it waits; a timer may come before those that are ready."""
    for _ in range(5):
        await asyncio.sleep(0)


@asynccontextmanager
async def work(running: int, waiting: int) -> AsyncIterator[Work]:
    started = Work(running, waiting)
    try:
        yield started
    finally:
        for task in started.tasks.values():
            task.cancel()
        await asyncio.wait(started.tasks.values())
    # Whatever was refused or given up: every place is free again.
    assert started.limiter._free == running
    assert not started.limiter._waiting


async def test_as_many_run_at_once_as_allowed() -> None:
    async with work(2, 10) as it:
        await it.start("a1", "a2", "a3")
        assert it.began == ["a1", "a2"]
        await it.end("a2")
        assert it.began == ["a1", "a2", "a3"]


async def test_who_comes_alone_does_not_wait_for_all_of_a_crowd() -> None:
    async with work(1, 10) as it:
        await it.start("a1", "a2", "a3", "a4", "b1", "c1", "b2")
        await it.end("a1", "a2", "b1", "c1", "a3", "b2", "a4")
        assert it.began == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


async def test_a_newcomer_is_refused_when_too_many_wait_and_told_when_to_come_back() -> None:
    async with work(1, 2) as it:
        await it.start("a1", "b1", "c1", "d1")
        assert it.began == ["a1"]
        assert it.refused == {"d1": "1"}


async def test_of_a_crowd_the_last_gives_its_place_to_whoever_comes_alone() -> None:
    async with work(1, 3) as it:
        await it.start("a1", "a2", "a3", "a4", "b1")
        assert it.refused.keys() == {"a4"}
        # Not for one more of the crowd, nor from a group that has as many.
        await it.start("a5", "b2")
        assert it.refused.keys() == {"a4", "a5", "b2"}


async def test_who_gives_up_holds_no_place() -> None:
    async with work(1, 2) as it:
        await it.start("a1", "b1", "c1")
        it.tasks["b1"].cancel()
        await asyncio.wait([it.tasks["b1"]])
        await it.start("d1")
        await it.end("a1", "c1")
        assert it.began == ["a1", "c1", "d1"]


async def test_a_turn_that_comes_just_when_it_is_given_up_goes_to_the_next() -> None:
    async with work(1, 3) as it:
        await it.start("a1", "b1", "c1")
        it._ends["a1"].set()
        await asyncio.sleep(0)
        it.tasks["b1"].cancel()
        await it.end("a1")
        assert it.began == ["a1", "c1"]


async def test_without_a_queue_only_what_runs_is_taken() -> None:
    async with work(1, 0) as it:
        await it.start("a1", "b1")
        assert it.refused.keys() == {"b1"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8:1:1::1", "2001:db8:1:ffff::1", True),
        ("2001:db8:1::1", "2001:db8:2::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
    ],
)
def test_all_that_a_subscriber_may_have_is_one(one: str, other: str, same: bool) -> None:
    first, second = (
        subscriber_of(HTTPConnection({"type": "http", "client": (host, 1)}))
        for host in (one, other)
    )
    assert (first == second) is same
