"""The time that a request may take until its answer starts."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf

import anyio

# What was committed must be told: there is this much time left for it, however late it is.
_ANSWER_SECONDS = 5.0

_current: ContextVar[anyio.CancelScope | None] = ContextVar("deadline", default=None)


@contextmanager
def deadline(seconds: float) -> Iterator[anyio.CancelScope]:
    """Cancel the block after `seconds`; the scope says whether that has happened."""
    with anyio.move_on_after(seconds) as scope:
        token = _current.set(scope)
        try:
            yield scope
        finally:
            _current.reset(token)


@contextmanager
def deadline_suspended() -> Iterator[None]:
    """Stop the clock of the current request, if any, for what must not be answered with a 504.

    A shield alone would not do: the request is cancelled as soon as it ends, and the client is
    told that nothing came of what has just been committed.
    """
    scope = _current.get()
    if scope is None or scope.cancel_called:
        yield
        return
    due, scope.deadline = scope.deadline, inf
    try:
        yield
    finally:
        scope.deadline = max(due, anyio.current_time() + _ANSWER_SECONDS)


def leave_deadline() -> None:
    """Have the current task no longer count as part of the request that started it."""
    _current.set(None)
