import asyncio
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, tzinfo
from types import SimpleNamespace

import anyio
import pytest

from app.core.database import Database
from app.core.job_clock import JobClock
from app.core.jobs import JobContext, PeriodicJob, Tick, periodic
from tests.fixtures.jobs import Jobs, eventually


def every(*, minutes: Iterable[int], hours: Iterable[int] | None = None) -> PeriodicJob:
    @periodic(name="tests.tick", minutes=minutes, hours=hours)
    async def tick(_: Tick, __: JobContext) -> None:
        raise AssertionError("nobody runs it")

    return tick


def at(clock: str, day: int = 2) -> datetime:
    return datetime.fromisoformat(f"2050-01-{day:02}T{clock}Z")


QUARTERS = every(minutes=range(0, 60, 15))
NIGHTLY = every(minutes=[30], hours=[3])


@pytest.mark.parametrize(
    ("job", "after", "until", "latest"),
    [
        (QUARTERS, at("10:14:59"), at("10:15:00"), at("10:15:00")),
        (QUARTERS, at("10:14:59"), at("10:15:59"), at("10:15:00")),
        (QUARTERS, at("10:15:00"), at("10:15:59"), None),
        (QUARTERS, at("10:01:00"), at("10:14:59"), None),
        # Of what was missed, the last.
        (QUARTERS, at("09:00:00"), at("10:46:00"), at("10:45:00")),
        (NIGHTLY, at("02:00:00"), at("03:30:00"), at("03:30:00")),
        (NIGHTLY, at("03:30:00"), at("23:59:59"), None),
        (NIGHTLY, at("04:00:00", day=1), at("04:00:00", day=30), at("03:30:00", day=30)),
        # The clock was set back.
        (QUARTERS, at("11:00:00"), at("10:00:00"), None),
    ],
)
def test_when_it_is_due(
    job: PeriodicJob, after: datetime, until: datetime, latest: datetime | None
) -> None:
    assert job.latest(after, until) == latest


async def test_however_many_clocks_tick_a_job_is_enqueued_once_each_time(
    jobs: Jobs, database: Database
) -> None:
    minutes = every(minutes=range(60))
    clocks = [JobClock([minutes], database) for _ in range(3)]
    for now in (at("10:00:00"), at("10:00:30"), at("10:01:00"), at("10:01:01")):
        async with anyio.create_task_group() as tasks:
            for clock in clocks:
                tasks.start_soon(clock.look, now)

    rows = await jobs.rows()
    assert [row.payload["scheduled_for"] for row in rows] == [
        "2050-01-02T10:00:00Z",
        "2050-01-02T10:01:00Z",
    ]
    assert {row.name for row in rows} == {"tests.tick"}
    assert Tick.model_validate(rows[0].payload).scheduled_for == at("10:00:00")


async def test_what_could_not_be_enqueued_is_at_the_next_look(
    jobs: Jobs, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = JobClock([QUARTERS], database)
    await clock.look(at("10:14:00"))
    before = len(await jobs.rows())
    with monkeypatch.context() as patch:
        patch.setattr(database, "transaction", database.read_only)
        with pytest.raises(Exception, match=r"read.?only"):
            await clock.look(at("10:15:00"))

    await clock.look(at("10:16:00"))

    assert len(await jobs.rows()) == before + 1


async def test_a_restart_at_the_very_minute_misses_nothing(jobs: Jobs, database: Database) -> None:
    started = datetime.now(UTC)
    await JobClock([every(minutes=range(60))], database).look(started + timedelta(seconds=1))

    assert len(await jobs.rows()) == 1


async def test_a_worker_whose_clock_is_ahead_does_nothing_before_its_time(
    jobs: Jobs, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Ahead":
            return cls.fromtimestamp(datetime.now(tz).timestamp() + 300, tz)

    monkeypatch.setattr("app.core.job_clock.datetime", Ahead)
    running = asyncio.create_task(JobClock([every(minutes=range(60))], database).run())
    rows = await eventually(jobs.rows, bool)
    running.cancel()
    await asyncio.wait([running])

    for row in rows:
        assert Tick.model_validate(row.payload).scheduled_for <= datetime.now(UTC)


async def test_what_came_while_the_database_was_away_since_the_start_is_not_missed(
    jobs: Jobs, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = JobClock([QUARTERS], database)
    in_ten_minutes = SimpleNamespace(monotonic=lambda: time.monotonic() + 600)
    monkeypatch.setattr("app.core.job_clock.time", in_ten_minutes)
    await clock.look(at("10:20:00"))

    rows = await jobs.rows()
    assert [row.payload["scheduled_for"] for row in rows] == ["2050-01-02T10:15:00Z"]
