import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID

import anyio
import pytest
from sqlalchemy import text

from app import dead_letters
from app.core.database import Database
from tests.fixtures.jobs import Jobs, WorkHere, a_dead_letter, eventually
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
            dead_letters.main(list(arguments))
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
    assert "is no JSON object" in await command("retry", "--payload", "[]", fails=True)
    assert "is no JSON" in await command("retry", "--payload", '{"new": NaN}', fails=True)
    deep = '{"new": ' + "[" * 50_000
    assert "is no JSON (" in await command("retry", "--payload", deep, fails=True)
    assert "Say which" in await command("retry", fails=True)
    assert "No dead letter" in await command("show", "ffff", fails=True)
    assert "too short" in await command("discard", "", fails=True)
    assert "too short" in await command("discard", letter.id.hex[-3:], fails=True)
    twin = await jobs.a_dead_letter(name="tests.bug", id=UUID(f"{0:024x}{letter.id.hex[-8:]}"))
    assert "Several" in await command("show", letter.id.hex[-8:], fails=True)
    await command("discard", str(twin.id))
    await command("retry", letter.id.hex[-8:], "--payload", '{"new": 2}')

    [row] = await jobs.rows()
    assert (row.name, row.payload, row.tries) == ("tests.note", {"new": 2}, 0)
    assert row.job_id == letter.job_id


async def test_many_letters_are_listed_in_part_and_retried_one_by_one(
    jobs: Jobs, command: Run, tmp_path: Path
) -> None:
    async with jobs.database.transaction() as session:
        # More than are shown at once.
        session.add_all(
            a_dead_letter(job_id=str(number), error="no\n" * 100) for number in range(103)
        )
    await jobs.a_dead_letter(name="tests.bug")
    taken = (await jobs.letters())[1]
    async with jobs.database.transaction() as session:
        await definitions.note.enqueue(session, Note(file=tmp_path), job_id=taken.job_id)

    listed = (await command("list", "--name", "tests.note")).splitlines()
    assert len(listed) == 1 + 100 + 1
    assert listed[1].endswith("...")
    assert "--payload is for one" in await command("retry", "--all", "--payload", "{}", fails=True)
    retried = await command("retry", "--name", "tests.note")

    assert retried.count("handed over") == 102
    assert retried.count("is under way already") == 1
    assert [letter.name for letter in await jobs.letters()] == ["tests.bug"]
    assert len(await jobs.rows()) == 103


async def test_a_payload_that_its_job_would_refuse_is_refused_at_once(
    jobs: Jobs, command: Run
) -> None:
    letter = await jobs.a_dead_letter(name="core.purge_outbox")

    async def retry(payload: str, *, fails: bool = False) -> str:
        return await command("retry", letter.id.hex, "--payload", payload, fails=fails)

    assert "scheduled_for: Field required" in await retry("{}", fails=True)
    assert not await jobs.rows()
    assert len(await jobs.letters()) == 1
    assert "handed over" in await retry('{"scheduled_for": "2030-01-01T00:00:00Z"}')


async def test_what_a_terminal_would_obey_is_escaped(jobs: Jobs, command: Run) -> None:
    evil = "\x1b]0;owned\x07 \x1b[2K\rall is well \u202e \x9b1m"
    letter = await jobs.a_dead_letter(
        payload={"evil": evil},
        ordering_key=evil,
        context={"request_id": evil},
        error=f"ValueError: {evil} Ägypten 日本",
        traceback=f"Traceback\n  line\n{evil}",
    )

    listed, shown = await command("list"), await command("show", letter.id.hex)

    for printed in (listed, shown):
        assert all(character.isprintable() for character in printed.replace("\n", ""))
        assert r"\x1b]0;owned\x07" in printed
    assert "Ägypten 日本" in shown
    assert "Traceback\n  line\n" in shown


async def test_a_letter_that_cannot_be_repeated_does_not_keep_the_others(
    jobs: Jobs, command: Run
) -> None:
    letters = [await jobs.a_dead_letter() for _ in range(3)]
    # What each database keeps, and then cannot give or take again.
    bad, id_ = "'{\"number\": 1e999}'", f"'{letters[0].id}'"
    if not jobs.database.engine.dialect.supports_native_uuid:
        bad, id_ = "'{'", f"'{letters[0].id.hex}'"
    async with jobs.database.transaction() as session:
        await session.execute(text(f"UPDATE dead_letters SET payload = {bad} WHERE id = {id_}"))

    assert "1 of 3 were left" in await command("retry", "--all", fails=True)

    assert {row.job_id for row in await jobs.rows()} == {each.job_id for each in letters[1:]}


async def test_a_database_that_is_away_is_said_in_one_line(
    command: Run, monkeypatch: pytest.MonkeyPatch, unreachable_database_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", unreachable_database_url)
    for arguments in (("list",), ("show", "1"), ("retry", "--all"), ("discard", "--all")):
        said = await command(*arguments, fails=True)
        assert said.startswith("The database cannot be used: ")
        assert "\n" not in said
