"""The answer that is a file: a few at a time for each caller."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.core.errors import TooManyRequestsError

MOST_AT_ONCE = 3
"""How many files a caller may fetch from one process at the same time."""

_under_way: Counter[str] = Counter()


class Download(StreamingResponse):
    """Sends a file, or 429 while the caller fetches enough others.

    Args:
        content: The file, piece by piece.
        caller: Who fetches it.
        media_type: What it is.
        headers: Sent along with it.
    """

    def __init__(
        self,
        content: AsyncIterator[bytes],
        caller: str,
        media_type: str,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(content, media_type=media_type, headers=headers)
        self._caller = caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count it as long as it is being sent."""
        if _under_way[self._caller] >= MOST_AT_ONCE:
            refusal = TooManyRequestsError(
                "You are fetching enough files already.", headers={"Retry-After": "1"}
            )
            await refusal.to_response(scope)(scope, receive, send)
            return
        _under_way[self._caller] += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            _under_way[self._caller] -= 1
            if not _under_way[self._caller]:
                del _under_way[self._caller]
