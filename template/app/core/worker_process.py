"""The process of a worker: no handler ends it early, and none keeps it from ending."""

import asyncio
import os
import threading
import time
from collections.abc import Coroutine
from typing import Any

import structlog

# More than closing takes, and little enough for whoever waits for the process's end.
_PATIENCE_SECONDS = 5.0

logger = structlog.get_logger(__name__)


def run_to_end(main: Coroutine[Any, Any, None]) -> None:
    """Run `main` in an event loop of its own, as the last thing that the process does.

    What tasks and threads go on some seconds after it are named in the log, and the process ends
    with 1 whether they have ended or not.

    Raises:
        Exception: what `main` has raised.
    """
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        task = loop.create_task(main)
        while not task.done():
            try:
                loop.run_until_complete(task)
            except (SystemExit, KeyboardInterrupt):
                # Of a task that a handler has started: asyncio lets them end the event loop. The
                # signal that a terminal sends has a handler of its own.
                logger.exception("exit_in_a_task_ignored")
            except BaseException:  # noqa: BLE001, S110
                pass
        threading.Thread(target=_insist, args=(loop,), daemon=True).start()
    task.result()


def _insist(loop: asyncio.AbstractEventLoop) -> None:
    time.sleep(_PATIENCE_SECONDS)
    main_thread = threading.main_thread()
    logger.error(
        "worker_ended_by_force",
        tasks=sorted(task.get_name() for task in asyncio.all_tasks(loop)),
        threads=sorted(
            thread.name
            for thread in threading.enumerate()
            if not thread.daemon and thread is not main_thread
        ),
    )
    os._exit(1)
