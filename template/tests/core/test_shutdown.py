"""The drain between a signal and the server's own handler, in this process."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import anyio
import pytest

from app.core import shutdown
from app.core.settings import AppSettings
from app.core.shutdown import drain_on_sigterm

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Server:
    """Has signal handlers, as uvicorn does, and notes what reaches them."""

    def __init__(self) -> None:
        self.got: list[tuple[int, float]] = []
        self.drained: list[float] = []

    def handle(self, number: int, frame: FrameType | None) -> None:
        self.got.append((number, time.monotonic()))

    def note_drain(self) -> None:
        self.drained.append(time.monotonic())


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    before = {number: signal.signal(number, server.handle) for number in SIGNALS}
    yield server
    for number, handler in before.items():
        signal.signal(number, handler)


async def kill(number: int) -> None:
    os.kill(os.getpid(), number)
    await anyio.sleep(0.05)


@pytest.mark.parametrize("number", SIGNALS)
async def test_without_a_drain_time_the_server_learns_of_it_at_once(
    server: Server, number: int
) -> None:
    with drain_on_sigterm(AppSettings(), server.note_drain):
        await kill(number)
    assert len(server.drained) == 1
    assert [got for got, _ in server.got] == [number]


async def test_the_signal_is_held_back_for_the_drain_time(server: Server) -> None:
    with drain_on_sigterm(AppSettings(SHUTDOWN_DRAIN_SECONDS=0.3), server.note_drain):
        await kill(signal.SIGTERM)
        assert len(server.drained) == 1
        assert server.got == []
        await anyio.sleep(0.4)
    [(number, at)] = server.got
    assert number == signal.SIGTERM
    assert at - server.drained[0] >= 0.29


async def test_a_second_signal_takes_the_place_of_the_first_at_once(server: Server) -> None:
    with drain_on_sigterm(AppSettings(SHUTDOWN_DRAIN_SECONDS=0.3), server.note_drain):
        await kill(signal.SIGTERM)
        await kill(signal.SIGINT)
        assert [number for number, _ in server.got] == [signal.SIGINT]
        # A third one is what makes uvicorn stop waiting.
        await kill(signal.SIGINT)
        await anyio.sleep(0.4)
    assert [number for number, _ in server.got] == [signal.SIGINT, signal.SIGINT]
    assert len(server.drained) == 1


@pytest.mark.parametrize("first", SIGNALS)
async def test_what_a_supervisor_passes_on_is_no_second_signal(server: Server, first: int) -> None:
    with drain_on_sigterm(AppSettings(SHUTDOWN_DRAIN_SECONDS=0.3), server.note_drain):
        await kill(first)
        await kill(signal.SIGTERM)
        await anyio.sleep(0.4)
        await kill(signal.SIGTERM)
    [(number, at)] = server.got
    assert number == first
    assert at - server.drained[0] >= 0.29


async def test_a_later_sigterm_ends_the_drain(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutdown, "_REPEAT_SECONDS", 0.01)
    with drain_on_sigterm(AppSettings(SHUTDOWN_DRAIN_SECONDS=600), server.note_drain):
        await kill(signal.SIGTERM)
        await kill(signal.SIGTERM)
        assert [number for number, _ in server.got] == [signal.SIGTERM]


async def test_at_exit_the_server_has_its_handlers_back_and_no_timer_is_left(
    server: Server,
) -> None:
    with drain_on_sigterm(AppSettings(SHUTDOWN_DRAIN_SECONDS=0.1), server.note_drain):
        assert signal.getsignal(signal.SIGTERM) != server.handle
        await kill(signal.SIGTERM)
    assert [signal.getsignal(number) for number in SIGNALS] == [server.handle, server.handle]
    await anyio.sleep(0.2)
    assert server.got == []


async def test_a_handler_that_came_later_stays(server: Server) -> None:
    later = Server()
    with drain_on_sigterm(AppSettings(), server.note_drain):
        signal.signal(signal.SIGTERM, later.handle)
    assert signal.getsignal(signal.SIGTERM) == later.handle
    assert signal.getsignal(signal.SIGINT) == server.handle


async def test_where_no_server_handles_signals_they_keep_their_meaning(server: Server) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with drain_on_sigterm(AppSettings(), server.note_drain):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


async def test_outside_the_main_thread_nothing_happens(server: Server) -> None:
    seen: list[object] = []

    async def run() -> None:
        with drain_on_sigterm(AppSettings(), server.note_drain):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    thread.join()
    assert seen == [server.handle]


async def test_what_must_be_ended_before_the_server_stops_is_waited_for(server: Server) -> None:
    ended = anyio.Event()

    async def end() -> None:
        assert server.got == []
        await ended.wait()

    with drain_on_sigterm(AppSettings(), server.note_drain, end):
        await kill(signal.SIGTERM)
        assert server.got == []
        ended.set()
        await anyio.sleep(0.05)
    assert [got for got, _ in server.got] == [signal.SIGTERM]


async def test_no_signal_cuts_short_what_must_be_ended_before(server: Server) -> None:
    ended = anyio.Event()
    settings = AppSettings(SHUTDOWN_DRAIN_SECONDS=600)
    with drain_on_sigterm(settings, server.note_drain, ended.wait):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            await kill(number)
        assert server.got == []
        ended.set()
        await anyio.sleep(0.05)
    assert [number for number, _ in server.got] == [signal.SIGINT]


async def test_the_server_stops_although_something_does_not_end(server: Server) -> None:
    settings = AppSettings(SHUTDOWN_TIMEOUT_SECONDS=0.1)
    with drain_on_sigterm(settings, server.note_drain, anyio.sleep_forever):
        await kill(signal.SIGTERM)
        with anyio.fail_after(10):
            while not server.got:
                await anyio.sleep(0.02)
    assert [got for got, _ in server.got] == [signal.SIGTERM]


async def test_the_server_stops_although_something_fails(server: Server) -> None:
    async def fail() -> None:
        raise OSError

    with drain_on_sigterm(AppSettings(), server.note_drain, fail):
        await kill(signal.SIGTERM)
    assert [got for got, _ in server.got] == [signal.SIGTERM]
