"""Readiness: deadline, cache, single flight and what is logged."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from app.health.service import HealthService, HealthSettings

SETTINGS = HealthSettings(HEALTH_CACHE_SECONDS=0)
HURRIED = HealthSettings(HEALTH_TIMEOUT_SECONDS=1, HEALTH_CACHE_SECONDS=0)
CACHED = HealthSettings(HEALTH_CACHE_SECONDS=60)


class Resource:
    """Something to check, whose behaviour the test changes."""

    def __init__(self, behave: Callable[[], Awaitable[object]] | None = None) -> None:
        self.calls = 0
        self.behave = behave or self.answer
        self.released = asyncio.Event()

    async def __call__(self) -> None:
        self.calls += 1
        await self.behave()

    async def answer(self) -> None:
        await asyncio.sleep(0.01)

    async def fail(self) -> None:
        raise ConnectionError("password of db.internal is wrong")

    async def hang(self) -> None:
        await asyncio.sleep(3600)

    async def hang_even_when_cancelled(self) -> None:
        # Not for ever, or a failed test would not end.
        until = time.monotonic() + 5
        while not self.released.is_set() and time.monotonic() < until:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.02)


async def test_ready_when_every_check_passes() -> None:
    readiness = await HealthService(SETTINGS, {"a": Resource(), "b": Resource()}).readiness()
    assert readiness.model_dump() == {"status": "ready", "checks": {"a": "ok", "b": "ok"}}


async def test_ready_when_there_is_nothing_to_check() -> None:
    readiness = await HealthService(SETTINGS, {}).readiness()
    assert readiness.model_dump() == {"status": "ready", "checks": {}}


async def test_one_failed_check_is_named_and_makes_it_unavailable() -> None:
    broken = Resource()
    broken.behave = broken.fail
    readiness = await HealthService(SETTINGS, {"a": Resource(), "b": broken}).readiness()
    assert readiness.model_dump() == {
        "status": "unavailable",
        "checks": {"a": "ok", "b": "failed"},
    }
    assert "db.internal" not in readiness.model_dump_json()


@pytest.mark.parametrize("kind", ["hang", "hang_even_when_cancelled"])
async def test_a_hanging_check_fails_at_the_deadline_and_the_others_count(kind: str) -> None:
    hanging = Resource()
    hanging.behave = getattr(hanging, kind)
    service = HealthService(HURRIED, {"a": hanging, "b": Resource()})
    async with asyncio.timeout(10):
        readiness = await service.readiness()
    assert readiness.checks == {"a": "failed", "b": "ok"}
    hanging.released.set()


async def test_the_checks_run_at_the_same_time() -> None:
    # Each waits until all of them have begun.
    together = asyncio.Barrier(5)
    checks = {str(number): Resource(together.wait) for number in range(5)}
    assert (await HealthService(SETTINGS, checks).readiness()).status == "ready"


async def test_a_check_that_cannot_be_stopped_is_not_started_again_beside_itself() -> None:
    stuck = Resource()
    stuck.behave = stuck.hang_even_when_cancelled
    service = HealthService(HURRIED, {"a": stuck})
    assert (await service.readiness()).checks == {"a": "failed"}
    assert (await service.readiness()).checks == {"a": "failed"}
    assert stuck.calls == 1
    stuck.behave = stuck.answer
    stuck.released.set()
    while stuck.calls == 1:
        await service.readiness()
    assert (await service.readiness()).checks == {"a": "ok"}


async def test_probes_at_the_same_time_share_one_round_of_checks() -> None:
    resource = Resource()
    service = HealthService(SETTINGS, {"a": resource})
    answers = await asyncio.gather(*(service.readiness() for _ in range(50)))
    assert {answer.status for answer in answers} == {"ready"}
    assert resource.calls == 1


async def test_an_answer_is_good_for_the_cache_time_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resource = Resource()
    service = HealthService(
        HealthSettings(HEALTH_CACHE_SECONDS=20),
        {"a": resource},
    )
    now = time.monotonic()
    for passed, calls in ((0, 1), (0, 1), (19.9, 1), (20.1, 2), (20.1, 2)):
        monkeypatch.setattr(time, "monotonic", lambda: now + passed)  # noqa: B023
        await service.readiness()
        assert resource.calls == calls


async def test_a_probe_that_hangs_up_does_not_stop_the_check_of_the_others() -> None:
    resource = Resource()
    service = HealthService(SETTINGS, {"a": resource})
    impatient = asyncio.create_task(service.readiness())
    patient = asyncio.create_task(service.readiness())
    await asyncio.sleep(0.01)
    impatient.cancel()
    assert (await patient).checks == {"a": "ok"}
    assert resource.calls == 1
    with pytest.raises(asyncio.CancelledError):
        await impatient


async def test_draining_is_unavailable_at_once_whatever_is_cached() -> None:
    service = HealthService(CACHED, {"a": Resource()})
    assert (await service.readiness()).status == "ready"
    service.start_draining()
    assert (await service.readiness()).model_dump() == {
        "status": "unavailable",
        "checks": {"a": "ok"},
    }


async def test_closing_ends_the_checks_that_nobody_waits_for_and_starts_no_more() -> None:
    resource = Resource()
    resource.behave = resource.hang
    service = HealthService(HealthSettings(HEALTH_CACHE_SECONDS=0), {"a": resource})
    probe = asyncio.create_task(service.readiness())
    await asyncio.sleep(0.01)
    probe.cancel()
    async with asyncio.timeout(1):
        await service.close()
    assert (await service.readiness()).status == "unavailable"
    assert resource.calls == 1
    never_asked = Resource()
    service = HealthService(SETTINGS, {"a": never_asked})
    await service.close()
    assert (await service.readiness()).status == "unavailable"
    assert never_asked.calls == 0


async def test_a_failure_is_logged_with_its_reason_once_and_so_is_the_recovery() -> None:
    resource = Resource()
    service = HealthService(SETTINGS, {"a": resource})
    with capture_logs() as logs:
        await service.readiness()
        resource.behave = resource.fail
        for _ in range(3):
            assert (await service.readiness()).status == "unavailable"
        resource.behave = resource.answer
        for _ in range(3):
            assert (await service.readiness()).status == "ready"
    assert [(line["event"], line["check"]) for line in logs] == [
        ("health_check_failed", "a"),
        ("health_check_recovered", "a"),
    ]
    assert isinstance(logs[0]["exc_info"], ConnectionError)


async def test_what_is_not_required_is_shown_and_does_not_count() -> None:
    broken = Resource()
    broken.behave = broken.fail
    service = HealthService(SETTINGS, {"a": Resource()})
    service.add("b", broken, required=False)
    expected = {"status": "ready", "checks": {"a": "ok", "b": "failed"}}
    assert (await service.readiness()).model_dump() == expected
    service.add("c", broken, required=True)
    assert (await service.readiness()).status == "unavailable"


async def test_an_optional_check_that_does_not_exist_is_logged_once() -> None:
    settings = HealthSettings(HEALTH_CACHE_SECONDS=0, HEALTH_OPTIONAL_CHECKS=["b", "typo"])
    service = HealthService(settings, {"a": Resource()})
    service.add("b", Resource(), required=True)
    with capture_logs() as logs:
        await service.readiness()
        await service.readiness()
    [line] = logs
    assert line["event"] == "health_optional_checks_unknown"
    assert (line["unknown"], line["known"]) == (["typo"], ["a", "b"])
