"""The end of tasks that run beside the others until they are cancelled."""

import asyncio
from typing import Any

import structlog

_TIMES = 3

logger = structlog.get_logger(__name__)


async def end_tasks(*tasks: asyncio.Task[Any], patience_seconds: float = 1.0) -> None:
    """Cancel tasks and wait until they have ended; what does not is left alone and logged.

    Each is cancelled up to three times: on Python 3.11 `asyncio.wait_for`, which libraries call,
    swallows a cancellation that comes just when it is done, and a loop then goes on.

    Args:
        tasks: May have ended already. What they raise is for the caller to look at.
        patience_seconds: How long to wait after each cancellation.
    """
    left = set(tasks)
    for _ in range(_TIMES):
        left = {task for task in left if not task.done()}
        if not left:
            return
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=patience_seconds)
    if names := sorted(task.get_name() for task in left if not task.done()):
        logger.error("tasks_not_ended", tasks=names)
