"""A limit for expensive work: groups of callers take turns, and only so many wait."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

from starlette.requests import HTTPConnection

from app.core.errors import ServiceUnavailableError
from app.core.rate_limit import network_of

# The most that one subscriber is given (RFC 6177); several small ones may share it.
_SUBSCRIBER_PREFIX = 48


class OverloadedError(ServiceUnavailableError):
    """Too much work waits already; `Retry-After` says when to come back."""

    code: ClassVar[str | None] = "overloaded"
    title: ClassVar[str | None] = "Overloaded"


class FairLimiter:
    """Lets some work run at once and some wait: the first of each group, then the second of each.

    So whoever comes alone waits for one of each other group at most, however many of theirs there
    are. When too many wait, the newcomer is refused, or the last of a group that has more waiting.

    Args:
        running: How many run at once.
        waiting: How many more may wait.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self._running = running
        self._free = running
        self._max_waiting = waiting
        # By group, whose turn is next first; no group is empty.
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        # How long the work took lately, in seconds.
        self._seconds = 0.0

    @asynccontextmanager
    async def turn(self, group: str) -> AsyncIterator[None]:
        """Wait for one's turn, which is over when the block ends.

        Raises:
            OverloadedError: too many wait already.
        """
        await self._acquire(group)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            yield
        finally:
            self._seconds = loop.time() - began
            self._release()

    async def _acquire(self, group: str) -> None:
        if self._free:
            self._free -= 1
            return
        self._make_room(group)
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(group, deque()).append(mine)
        try:
            await mine
        except BaseException:
            if mine.done() and not mine.cancelled() and mine.exception() is None:
                # It was its turn just when it was given up.
                self._release()
            else:
                self._remove(group, mine)
            raise

    def _make_room(self, group: str) -> None:
        count = sum(map(len, self._waiting.values()))
        if count < self._max_waiting:
            return
        error = OverloadedError(headers={"Retry-After": str(self._retry_after(count))})
        longest = max(self._waiting, key=lambda name: len(self._waiting[name]), default=group)
        if len(self._waiting.get(longest, ())) <= len(self._waiting.get(group, ())) + 1:
            raise error
        last = self._waiting[longest][-1]
        self._remove(longest, last)
        if not last.done():
            last.set_exception(error)

    def _release(self) -> None:
        while self._waiting:
            group, waiting = next(iter(self._waiting.items()))
            first = waiting[0]
            self._remove(group, first)
            # Whoever has just been cancelled needs no turn.
            if not first.done():
                if group in self._waiting:
                    self._waiting.move_to_end(group)
                first.set_result(None)
                return
        self._free += 1

    def _remove(self, group: str, future: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(group, deque())
        if future in waiting:
            waiting.remove(future)
            if not waiting:
                del self._waiting[group]

    def _retry_after(self, count: int) -> int:
        return 1 + int(count * self._seconds / self._running)


def subscriber_of(connection: HTTPConnection) -> str:
    """Who takes turns, and who fails: an IPv4 address, or all that an IPv6 subscriber may have."""
    return network_of(connection, _SUBSCRIBER_PREFIX)
