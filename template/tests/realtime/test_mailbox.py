"""The queue of a client: bounded, in order, and what gives way when it is full."""

import asyncio

import anyio

from app.core.channels import Channel
from app.realtime.mailbox import Mailbox
from app.realtime.statistics import Counters

STRICT = Channel("strict", messages=())
LOSSY = Channel("lossy", messages=(), drops_oldest=True)


async def contents(mailbox: Mailbox) -> list[str]:
    mailbox.seal(discard=False)
    frames = []
    while (frame := await mailbox.take()) is not None:
        frames.append(frame)
    return frames


async def test_there_is_room_for_so_many_and_no_more() -> None:
    mailbox = Mailbox(2, Counters())
    assert [mailbox.put(frame, STRICT) for frame in "abc"] == [True, True, False]
    assert await contents(mailbox) == ["a", "b"]


async def test_the_oldest_that_may_be_dropped_gives_way_to_whatever_comes() -> None:
    mailbox = Mailbox(3, Counters())
    mailbox.put("a", STRICT)
    mailbox.put("b", LOSSY)
    mailbox.put("c", LOSSY)
    assert mailbox.put("d", LOSSY)
    assert mailbox.put("e", STRICT)
    assert await contents(mailbox) == ["a", "d", "e"]


async def test_what_may_be_dropped_is_dropped_itself_when_nothing_gives_way() -> None:
    mailbox = Mailbox(1, Counters())
    mailbox.put("a", STRICT)
    assert mailbox.put("b", LOSSY)
    assert not mailbox.put("answer")
    assert await contents(mailbox) == ["a"]


async def test_who_waits_is_woken_by_a_frame_and_by_the_end() -> None:
    mailbox = Mailbox(1, Counters())
    for wake in (lambda: mailbox.put("a"), lambda: mailbox.seal(discard=True)):
        waiting = asyncio.create_task(mailbox.take())
        await asyncio.sleep(0)
        wake()
        with anyio.fail_after(10):
            last = await waiting
    assert last is None


async def test_a_sealed_one_takes_nothing_and_keeps_what_it_is_told_to_keep() -> None:
    mailbox = Mailbox(2, Counters())
    mailbox.put("a")
    mailbox.seal(discard=False)
    assert mailbox.put("b")
    assert await contents(mailbox) == ["a"]
    mailbox = Mailbox(2, Counters())
    mailbox.put("a")
    mailbox.seal(discard=True)
    assert len(mailbox) == 0
