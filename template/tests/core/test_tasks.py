"""Tasks end when they are told to, also those that miss it once."""

import asyncio

import anyio
import pytest
from structlog.testing import capture_logs

from app.core.tasks import end_tasks


async def miss(cancellations: int) -> None:
    """Go on after so many cancellations."""
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            if not cancellations:
                raise
            cancellations -= 1


async def fail() -> None:
    """Raise an error."""
    message = "failed"
    raise ValueError(message)


@pytest.mark.parametrize("cancellations", [0, 1, 2])
async def test_a_task_that_misses_its_cancellation_is_ended_all_the_same(
    cancellations: int,
) -> None:
    task = asyncio.create_task(miss(cancellations))
    await anyio.wait_all_tasks_blocked()

    with capture_logs() as logged:
        await end_tasks(task, patience_seconds=0.05)

    assert task.cancelled()
    assert not logged


async def test_what_does_not_end_is_named_and_left_alone() -> None:
    task = asyncio.create_task(miss(3), name="stubborn")
    await anyio.wait_all_tasks_blocked()

    with capture_logs() as logged:
        await end_tasks(task, patience_seconds=0.05)

    assert not task.done()
    assert [(line["event"], line["tasks"]) for line in logged] == [
        ("tasks_not_ended", ["stubborn"])
    ]
    await end_tasks(task)


async def test_what_has_ended_before_keeps_its_outcome() -> None:
    task = asyncio.create_task(fail())
    await asyncio.wait({task})

    await end_tasks(task)

    with pytest.raises(ValueError, match="failed"):
        task.result()
