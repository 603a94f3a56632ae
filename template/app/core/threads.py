"""Work that blocks or computes, moved off the event loop."""

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, Unpack

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Apart from the 40 threads that serve synchronous routes and files, so that slow work here cannot
# starve those. Few on purpose: Python threads share one lock, and more of them only take turns.
MAX_THREADS = 8

_limiter: RunVar[CapacityLimiter] = RunVar("offload_limiter")


async def offload(function: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
    """Run a blocking or CPU-heavy function in a thread while the event loop goes on.

    At most `MAX_THREADS` run at once; further calls wait their turn. Context variables (the
    request id of log lines) are kept, exceptions come back to the caller. Never hand a database
    session over: it belongs to the event loop.

    A thread cannot be stopped. A deadline of the caller (such as the request's) takes effect after
    the function has returned: keep single calls short, or give the function a time limit of its
    own. Only a forced end, `asyncio.Task.cancel`, leaves at once and the thread to itself.

    Args:
        function: What to run; bind keyword arguments with `functools.partial`.
        args: Its positional arguments.
    """
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = CapacityLimiter(MAX_THREADS)
        _limiter.set(limiter)
    return await to_thread.run_sync(function, *args, limiter=limiter)
