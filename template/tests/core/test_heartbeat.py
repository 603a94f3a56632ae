import asyncio
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.core.heartbeat import Heartbeat, beat, find_problem, write_heartbeat
from tests.fixtures.jobs import eventually


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "heartbeat.json"


def healthy() -> Heartbeat:
    return Heartbeat(working_at=time.time(), draining=False)


@pytest.mark.parametrize("ready", [True, False])
def test_a_process_that_beats_has_no_problem(file: Path, ready: bool) -> None:
    write_heartbeat(file, healthy())

    assert find_problem(file, ready=ready) is None
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("change", "problem", "is_alive"),
    [
        ({"alive_at": time.time() - 60}, "has been stuck for", False),
        ({"stuck": 1}, "has 1 jobs that do not end", False),
        ({"draining": True}, "is about to end", True),
        ({"working_at": time.time() - 60}, "does not reach its queue", True),
        ({"working_at": 0.0}, "does not reach its queue", True),
    ],
)
def test_what_a_living_process_can_have_and_whether_it_counts_as_alive(
    file: Path,
    change: dict[str, Any],
    problem: str,
    is_alive: bool,
) -> None:
    write_heartbeat(file, replace(healthy(), **change))

    assert problem in (find_problem(file, ready=True) or "")
    assert (find_problem(file, ready=False) is None) is is_alive


def test_a_process_that_has_ended_is_gone_even_if_its_parent_has_not_noticed(file: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        # Without taking note of its end, as `wait` would.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        write_heartbeat(file, replace(healthy(), pid=process.pid))
        assert "is gone" in (find_problem(file, ready=False) or "")

    assert "is gone" in (find_problem(file, ready=False) or "")


def test_the_process_of_another_user_counts_as_running(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int, signal: int) -> None:
        raise PermissionError

    write_heartbeat(file, healthy())
    monkeypatch.setattr(os, "kill", refuse)

    assert find_problem(file, ready=True) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": 1}', "\x00"])
def test_a_file_that_is_no_heartbeat_is_a_problem(file: Path, content: str) -> None:
    assert "there is no heartbeat" in (find_problem(file, ready=False) or "")
    file.write_text(content)

    assert "cannot be read" in (find_problem(file, ready=False) or "")


def test_a_folder_is_no_heartbeat(tmp_path: Path) -> None:
    assert "cannot be read" in (find_problem(tmp_path, ready=False) or "")


async def test_it_is_written_again_and_again_and_at_once_when_its_state_changes(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"working_at": 0.0, "draining": False}
    beating = asyncio.create_task(beat(file, lambda: Heartbeat(**state)))  # type: ignore[arg-type]

    async def problem() -> str:
        return find_problem(file, ready=True) or ""

    await eventually(problem, lambda found: "does not reach" in found)
    monkeypatch.setattr("app.core.heartbeat._INTERVAL_SECONDS", 600)
    state["working_at"] = time.time()
    await eventually(problem, lambda found: not found)
    state["draining"] = True
    await eventually(problem, lambda found: "about to end" in found)

    monkeypatch.setattr("app.core.heartbeat._INTERVAL_SECONDS", 0.1)

    async def modified() -> float:
        return await asyncio.to_thread(os.path.getmtime, file)

    written = await modified()
    await eventually(modified, lambda found: found > written)
    beating.cancel()
    with suppress(asyncio.CancelledError):
        await beating
