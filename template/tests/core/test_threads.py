"""Blocking work off the event loop."""

import asyncio
import threading
import time
from contextvars import ContextVar

import anyio
import pytest

from app.core.threads import MAX_THREADS, offload

request_id: ContextVar[str] = ContextVar("request_id")


async def test_the_event_loop_goes_on_while_the_function_blocks() -> None:
    released = threading.Event()
    asyncio.get_running_loop().call_later(0.01, released.set)
    assert await offload(released.wait, 5)


async def test_arguments_results_and_context_variables_go_through() -> None:
    request_id.set("abc")
    assert await offload(divmod, 7, 2) == (3, 1)
    assert await offload(request_id.get) == "abc"
    assert await offload(threading.get_ident) != threading.get_ident()


async def test_an_exception_comes_back_to_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        await offload(divmod, 1, 0)


async def test_at_most_so_many_run_at_once() -> None:
    running: set[int] = set()
    highest = 0

    def work() -> None:
        nonlocal highest
        running.add(threading.get_ident())
        highest = max(highest, len(running))
        time.sleep(0.03)
        running.discard(threading.get_ident())

    await asyncio.gather(*(offload(work) for _ in range(3 * MAX_THREADS)))
    assert highest == MAX_THREADS


async def test_a_deadline_takes_effect_when_the_function_has_returned() -> None:
    finished = threading.Event()

    def work() -> None:
        while not deadline.cancel_called:
            time.sleep(0.01)
        time.sleep(0.05)
        finished.set()

    with anyio.move_on_after(0.05) as deadline:
        await offload(work)
        await anyio.lowlevel.checkpoint()
        pytest.fail("the deadline has passed")
    assert deadline.cancelled_caught
    assert finished.is_set()
