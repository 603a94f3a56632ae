"""Jobs for tests: each does one thing, right or wrong, and notes it in a file."""

import asyncio
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from app.core.jobs import JobContext, RetryPolicy, job

QUICKLY = RetryPolicy(max_tries=3, base_seconds=0.05)


class Note(BaseModel):
    """Where to write what."""

    file: Path
    text: str = "done"

    def write(self, text: str) -> None:
        """Append a line, at once whole."""
        with self.file.open("a") as file:
            file.write(f"{text}\n")


class Nap(Note):
    """How long to sleep before it."""

    seconds: float


@job(name="tests.note", payload=Note, retry=QUICKLY)
async def note(payload: Note, _: JobContext) -> None:
    """Write the note."""
    payload.write(payload.text)


@job(name="tests.state", payload=Note, retry=QUICKLY)
async def show_state(payload: Note, context: JobContext) -> None:
    """Write what the state has under the note's text."""
    payload.write(str(context.state[payload.text]))


@job(name="tests.nap", payload=Nap, retry=QUICKLY, timeout_seconds=60)
async def nap(payload: Nap, context: JobContext) -> None:
    """Write the number of the try, sleep, and write the note."""
    payload.write(f"try {context.tries}")
    await asyncio.sleep(payload.seconds)
    payload.write(payload.text)


@job(name="tests.out_of_order", payload=Note, retry_on=(ValueError,), retry=QUICKLY)
async def out_of_order(payload: Note, context: JobContext) -> None:
    """Fail as long as there is no file of the same name that ends in `.repaired`."""
    payload.write(f"try {context.tries}")
    if not payload.file.with_suffix(".repaired").exists():
        raise ValueError("out of order")


@job(name="tests.bug", payload=Note, retry=QUICKLY)
async def bug(payload: Note, _: JobContext) -> None:
    """Fail for good."""
    payload.write("tried")
    raise ZeroDivisionError


@job(name="tests.too_slow", payload=Note, retry=QUICKLY, timeout_seconds=0.1)
async def too_slow(payload: Note, _: JobContext) -> None:
    """Take longer than allowed."""
    payload.write("tried")
    await asyncio.sleep(30)


@job(name="tests.deadly", payload=Note, retry=RetryPolicy(max_tries=1))
async def deadly(payload: Note, _: JobContext) -> None:
    """Kill the worker."""
    payload.write("tried")
    os.kill(os.getpid(), signal.SIGKILL)


async def _of_the_next_release(_: Any, __: JobContext) -> None:
    raise AssertionError("no worker of this release knows it")


of_the_next_release = job(name="tests.of_the_next_release", payload=Note)(_of_the_next_release)


@job(name="tests.stubborn", payload=Note, retry=QUICKLY, timeout_seconds=0.1)
async def stubborn(payload: Note, _: JobContext) -> None:
    """Go on for ever, whoever cancels it, in a thread too."""
    payload.write("tried")
    threading.Thread(target=time.sleep, args=(600,), name="endless").start()
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(600)


@job(name="tests.exit", payload=Note, retry=QUICKLY)
async def exit_in_a_task(payload: Note, _: JobContext) -> None:
    """End the process from a task that it starts."""

    async def leave() -> None:
        sys.exit(payload.text)

    await asyncio.create_task(leave())
