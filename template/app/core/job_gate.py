"""The gate in front of a worker's handlers: many side by side, or one alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class JobGate:
    """Lets jobs in side by side, and a suspect only when all others have left.

    A job that takes its worker down takes its neighbours' tries along. Alone, it takes its own.
    """

    def __init__(self) -> None:
        # Fair: whoever comes while a suspect waits or runs comes after it.
        self._turnstile = asyncio.Lock()
        self._empty = asyncio.Event()
        self._empty.set()
        self._inside = 0

    @asynccontextmanager
    async def enter(self, *, alone: bool) -> AsyncIterator[None]:
        """Wait for the turn, and have it until the block ends."""
        async with self._turnstile:
            if alone:
                await self._empty.wait()
                yield
                return
            self._inside += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()
