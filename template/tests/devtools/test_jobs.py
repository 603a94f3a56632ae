import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from app.core.database import Database
from devtools.jobs import main
from tests.fixtures.jobs import Jobs, Work, eventually
from tests.jobs import definitions
from tests.jobs.definitions import Note

Run = Callable[..., Awaitable[str]]


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
    jobs: Jobs, command: Run, work: Work, database: Database, tmp_path: Path
) -> None:
    file = tmp_path / "machine.log"
    async with work(module="tests.jobs.worker"):
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

        def read() -> list[str]:
            return file.read_text().splitlines()

        await eventually(lambda: anyio.to_thread.run_sync(read), lambda found: len(found) == 4)
        assert await command("list") == "No dead letters.\n"
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
