"""What waits for one client: a bounded queue, and what happens when it is full."""

import asyncio
from collections import deque
from typing import NamedTuple

from app.core.channels import Channel
from app.realtime.statistics import Counters


class _Letter(NamedTuple):
    frame: str
    may_be_dropped: bool


class Mailbox:
    """Frames on their way to one client, oldest first.

    Args:
        size: How many may wait.
        counters: Where dropped frames are counted.
    """

    def __init__(self, size: int, counters: Counters) -> None:
        self._size = size
        self._counters = counters
        self._letters: deque[_Letter] = deque()
        self._woken = asyncio.Event()
        self._is_sealed = False

    def __len__(self) -> int:
        """How many frames wait."""
        return len(self._letters)

    def put(self, frame: str, channel: Channel | None = None) -> bool:
        """Add a frame; whether there was room for it.

        Args:
            frame: As JSON.
            channel: Whose event it is, which says what to do when there is no room; `None` for an
                answer, which always needs room.
        """
        if self._is_sealed:
            return True
        may_be_dropped = channel is not None and channel.drops_oldest
        if len(self._letters) >= self._size:
            has_room = self._make_room()
            # Where nothing gives way, it is the new one that is dropped, or its client is closed.
            self._counters.dropped += has_room or may_be_dropped
            if not has_room:
                return may_be_dropped
        self._letters.append(_Letter(frame, may_be_dropped))
        self._woken.set()
        return True

    async def take(self) -> str | None:
        """Wait for the next frame; `None` when there will be none any more."""
        while not self._letters:
            if self._is_sealed:
                return None
            self._woken.clear()
            await self._woken.wait()
        return self._letters.popleft().frame

    def seal(self, *, discard: bool) -> None:
        """Take in nothing more.

        Args:
            discard: Whether what waits is dropped as well.
        """
        self._is_sealed = True
        if discard:
            self._letters.clear()
        self._woken.set()

    def _make_room(self) -> bool:
        for position, letter in enumerate(self._letters):
            if letter.may_be_dropped:
                del self._letters[position]
                return True
        return False
