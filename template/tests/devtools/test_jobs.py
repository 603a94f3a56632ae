import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import pytest

from app.core.database import Database
from app.core.heartbeat import find_problem
from devtools.jobs import main
from tests.fixtures.jobs import Jobs, WorkHere, eventually
from tests.fixtures.server import ServedProcess
from tests.jobs import definitions
from tests.jobs.definitions import Note

Run = Callable[..., Awaitable[str]]

_PROJECT = Path(__file__).parents[2]


@pytest.fixture
def command(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the command, and gives what it prints or complains about."""
    monkeypatch.setenv("DATABASE_URL", database_url)

    def call(arguments: tuple[str, ...]) -> str | int | None:
        try:
            main(list(arguments))
        except SystemExit as end:
            return end.code
        return 0

    async def run(*arguments: str, fails: bool = False) -> str:
        capsys.readouterr()
        # It runs an event loop of its own.
        code = await anyio.to_thread.run_sync(call, arguments)
        assert (code != 0) is fails, code
        printed = capsys.readouterr()
        return f"{printed.err}{code}" if fails else printed.out

    return run


async def test_a_poison_job_is_listed_shown_repaired_and_replayed(
    jobs: Jobs, command: Run, work_here: WorkHere, database: Database, tmp_path: Path
) -> None:
    file = tmp_path / "machine.log"
    async with work_here():
        async with database.transaction() as session:
            await definitions.out_of_order.enqueue(session, Note(file=file))
        [letter] = await eventually(jobs.letters, bool)

    [header, line] = (await command("list")).splitlines()
    assert header.split()[:4] == ["ID", "JOB", "TRIES", "FAILED"]
    short, name, tries, *_, error = line.split(maxsplit=5)
    assert (name, tries, error) == ("tests.out_of_order", "3", "ValueError: out of order")
    shown = await command("show", short)
    assert json.dumps(str(file)) in shown
    assert shown.endswith("ValueError: out of order\n")

    file.with_suffix(".repaired").touch()
    assert await command("retry", str(letter.id)) == f"{short}  {name}: handed over\n"
    assert await command("list") == "No dead letters.\n"

    def read() -> list[str]:
        return file.read_text().splitlines()

    async with work_here():
        await eventually(lambda: anyio.to_thread.run_sync(read), lambda found: len(found) == 4)
    assert read() == ["try 1", "try 2", "try 3", "try 1"]


async def test_a_payload_can_be_replaced_and_letters_discarded_by_name(
    jobs: Jobs, command: Run
) -> None:
    letter = await jobs.a_dead_letter(name="tests.note", payload={"old": 1})
    await jobs.a_dead_letter(name="tests.bug")
    await jobs.a_dead_letter(name="tests.bug")

    assert (await command("discard", "--name", "tests.bug")).count("discarded") == 2
    assert "is no JSON" in await command("retry", str(letter.id), "--payload", "{", fails=True)
    assert "Say which" in await command("retry", fails=True)
    assert "No dead letter" in await command("show", "ffff", fails=True)
    await command("retry", letter.id.hex[-8:], "--payload", '{"new": 2}')

    [row] = await jobs.rows()
    assert (row.name, row.payload, row.tries) == ("tests.note", {"new": 2}, 0)
    assert row.job_id == letter.job_id


async def test_many_letters_are_listed_in_part_and_retried_one_by_one(
    jobs: Jobs, command: Run
) -> None:
    for number in range(103):
        await jobs.a_dead_letter(job_id=str(number), error="no\n" * 100)
    await jobs.a_dead_letter(name="tests.bug")
    taken = (await jobs.letters())[1]
    async with jobs.database.transaction() as session:
        await definitions.note.enqueue(session, Note(file=_PROJECT), job_id=taken.job_id)

    listed = (await command("list", "--name", "tests.note")).splitlines()
    assert len(listed) == 1 + 100 + 1
    assert listed[1].endswith("...")
    assert "--payload is for one" in await command("retry", "--all", "--payload", "{}", fails=True)
    assert "Several" in await command("show", "", fails=True)
    retried = await command("retry", "--name", "tests.note")

    assert retried.count("handed over") == 102
    assert retried.count("is under way already") == 1
    assert [letter.name for letter in await jobs.letters()] == ["tests.bug"]
    assert len(await jobs.rows()) == 103


def test_the_recipes_run_the_worker_and_this_command() -> None:
    just = Path(sys.executable).with_name("just")

    def run(*recipe: str) -> str:
        command = [str(just), "--justfile", str(_PROJECT / "justfile"), *recipe]
        # Prints what it would run, a word a line.
        env = {**os.environ, "UV": "printf '%s\\n'"}
        result = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
        return result.stdout

    assert run("worker").splitlines() == ["run", "python", "-m", "devtools.dev", "worker"]
    payload = '{"customer": "Ada Lovelace"}'
    words = run("jobs", "retry", "--payload", payload).splitlines()
    assert words[3:] == ["devtools.dev", "jobs", "retry", "--payload", payload]


@pytest.fixture
def working(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ServedProcess]:
    """What `just worker` starts, with its heartbeat in the test's folder."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("WORKER_HEARTBEAT_FILE", str(tmp_path / "heartbeat.json"))
    monkeypatch.setenv("PYTHONPATH", str(_PROJECT))
    output = tmp_path / "output.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "devtools.dev", "worker"],
            cwd=tmp_path,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    yield ServedProcess("", process, output)
    process.kill()
    process.wait()


async def test_just_worker_migrates_then_works_until_it_is_stopped(
    working: ServedProcess, tmp_path: Path
) -> None:
    async def problem() -> str:
        assert working.process.poll() is None, working.logs()
        return find_problem(tmp_path / "heartbeat.json", ready=True) or ""

    await eventually(problem, lambda found: not found)
    working.process.terminate()
    assert await working.wait() == 0, working.logs()
