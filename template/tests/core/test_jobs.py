from types import ModuleType

import pytest

from app.core.jobs import JobRegistry, RetryPolicy, job
from app.worker_lifespan import job_modules
from tests.jobs import definitions


def test_the_backoff_doubles_up_to_a_cap_and_is_spread_over_the_whole_time() -> None:
    policy = RetryPolicy(base_seconds=2, cap_seconds=10)

    for tries, ceiling in ((1, 2), (2, 4), (3, 8), (4, 10), (1000, 10)):
        delays = [policy.delay(tries).total_seconds() for _ in range(500)]
        assert 0 <= min(delays) < 0.1 * ceiling
        assert 0.9 * ceiling < max(delays) <= ceiling


def test_two_jobs_cannot_have_one_name() -> None:
    other = ModuleType("other")
    other.note = job(name="tests.note", payload=definitions.Note)(definitions.note.handler)  # type: ignore[attr-defined]

    with pytest.raises(ValueError, match=r"tests\.note"):
        JobRegistry.of([definitions, other])


def test_a_job_that_two_modules_share_is_one_job() -> None:
    other = ModuleType("other")
    other.note = definitions.note  # type: ignore[attr-defined]

    assert JobRegistry.of([definitions, other]).jobs["tests.note"] is definitions.note


def test_the_worker_finds_the_jobs_of_core_and_of_the_domains() -> None:
    assert "core.purge_outbox" in JobRegistry.of(job_modules()).jobs
