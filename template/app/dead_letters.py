"""The jobs that were given up, from the command line: `python -m app.dead_letters list`."""

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, NoReturn
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import dead_letters
from app.core.background import BackgroundRunner
from app.core.database import Database, is_lock_timeout, is_unavailable
from app.core.dead_letters import DeadLetter
from app.core.events import EventBus
from app.core.jobs import JobRegistry, PayloadMismatchError
from app.settings import InvalidSettingsError, load_settings

_LISTED = 100
_ERROR_WIDTH = 60
_FEWEST_DIGITS = 4


def main(arguments: list[str] | None = None) -> None:
    """List, show, retry or discard dead letters in the database that the environment names.

    Raises:
        SystemExit: with what is wrong with the environment, the database, or with what was asked
            for.
    """
    options = _parser().parse_args(arguments)
    try:
        settings = load_settings()
    except InvalidSettingsError as error:
        sys.exit(f"The environment cannot be used:\n{error}")

    async def run() -> None:
        database = Database(settings, EventBus(BackgroundRunner(settings)))
        try:
            await _COMMANDS[options.command](database, options)
        finally:
            await database.close()

    try:
        asyncio.run(run())
    except SQLAlchemyError as error:
        sys.exit(f"The database cannot be used: {_reason(error)}")


def _reason(error: Exception) -> str:
    # Without the statement, and the link to an explanation.
    return _printable(str(getattr(error, "orig", None) or error).partition("\n")[0])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m app.dead_letters", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="the dead letters, oldest first")
    listing.add_argument("--name", help="only jobs of this name")
    show = commands.add_parser("show", help="everything that is known about one")
    show.add_argument("ids", metavar="id", nargs=1)
    for name, description in (
        ("retry", "hand jobs over again, with all their tries"),
        ("discard", "delete dead letters for good"),
    ):
        command = commands.add_parser(name, help=description)
        command.add_argument("ids", metavar="id", nargs="*", help="an id, or how it ends")
        command.add_argument("--name", help="all jobs of this name")
        command.add_argument("--all", action="store_true", help="all jobs")
        if name == "retry":
            command.add_argument(
                "--payload", type=_json_object, help="JSON to use instead of the job's own"
            )
    return parser


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("is no JSON object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    message = f"{name} is only Python's"
    raise ValueError(message)


async def _list(database: Database, options: argparse.Namespace) -> None:
    async with database.read_only() as session:
        letters = await dead_letters.find(session, name=options.name, limit=_LISTED + 1)
    if not letters:
        _say("No dead letters.")
        return
    rows = [
        (
            _short(letter.id),
            letter.name,
            str(letter.tries),
            _time(letter.failed_at),
            _summary(letter),
        )
        for letter in letters[:_LISTED]
    ]
    _print_table(("ID", "JOB", "TRIES", "FAILED AT (UTC)", "ERROR"), rows)
    if len(letters) > _LISTED:
        _say(f"... and more; these are the oldest {_LISTED}.")


async def _show(database: Database, options: argparse.Namespace) -> None:
    [id_] = await _selected(database, options)
    async with database.read_only() as session:
        letter = await session.get_one(DeadLetter, id_)
    fields = {
        "id": str(letter.id),
        "job": letter.name,
        "job id": letter.job_id,
        "tries": str(letter.tries),
        "ordering key": letter.ordering_key or "-",
        "enqueued at": _time(letter.enqueued_at),
        "failed at": _time(letter.failed_at),
        **letter.context,
        "error": letter.error,
    }
    width = max(map(len, fields))
    for name, value in fields.items():
        _say(f"{name:<{width}}  {value}")
    _say(f"\nPayload\n{json.dumps(letter.payload, indent=2, ensure_ascii=False)}")
    _say(f"\n{letter.traceback}".rstrip())


async def _retry(database: Database, options: argparse.Namespace) -> None:
    ids = await _selected(database, options)
    if options.payload is not None and len(ids) > 1:
        sys.exit("--payload is for one job.")

    async def retry(session: AsyncSession, letter: DeadLetter) -> str:
        if options.payload is not None:
            _check(letter, options.payload)
        again = await dead_letters.retry(session, letter, options.payload)
        return "handed over" if again else "is under way already"

    await _change(database, ids, retry)


async def _change(
    database: Database,
    ids: Sequence[UUID],
    change: Callable[[AsyncSession, DeadLetter], Awaitable[str]],
) -> None:
    refused = 0
    # One by one: there may be more than fit into memory, locks are held for a moment only, and one
    # that cannot be changed does not keep the others.
    for id_ in ids:
        try:
            async with database.transaction() as session:
                if letter := await dead_letters.get_locked(session, id_):
                    outcome = await change(session, letter)
        except (SQLAlchemyError, ValueError, RecursionError) as error:
            if is_unavailable(error) and not is_lock_timeout(error):
                raise
            refused += 1
            _say(f"{_short(id_)}  cannot be changed: {_reason(error)}")
        else:
            if letter:
                _say(f"{_short(id_)}  {letter.name}: {outcome}")
    if refused:
        sys.exit(f"{refused} of {len(ids)} were left as they are.")


def _check(letter: DeadLetter, payload: dict[str, Any]) -> None:
    # Only where needed, as this loads the whole service.
    from app.worker_lifespan import job_modules  # noqa: PLC0415

    definition = JobRegistry.of(job_modules()).jobs.get(letter.name)
    try:
        # One that only another release knows is checked by its workers.
        if definition is not None:
            definition.load(payload)
    except PayloadMismatchError as error:
        message = f"The payload does not fit {letter.name}: {error}"
        raise SystemExit(message) from None


async def _discard(database: Database, options: argparse.Namespace) -> None:
    async def discard(session: AsyncSession, letter: DeadLetter) -> str:
        await dead_letters.discard(session, letter)
        return "discarded"

    await _change(database, await _selected(database, options), discard)


async def _selected(database: Database, options: argparse.Namespace) -> Sequence[UUID]:
    name = getattr(options, "name", None)
    if not (options.ids or name or getattr(options, "all", False)):
        sys.exit("Say which: ids, --name or --all.")
    async with database.read_only() as session:
        found = await dead_letters.find_ids(session, name=name)
    if not options.ids:
        return found
    return [_the_one(found, text) for text in options.ids]


def _the_one(found: Sequence[UUID], text: str) -> UUID:
    wanted = text.lower().replace("-", "")
    if len(wanted) < _FEWEST_DIGITS:
        # Such as "", which a variable of a script may be, and which every id ends in.
        sys.exit(f"{text!r} is too short; give the last {_FEWEST_DIGITS} digits of an id, or more.")
    matching = [id_ for id_ in found if id_.hex.endswith(wanted)]
    if len(matching) != 1:
        problem = "No dead letter's id ends" if not matching else "Several dead letters' ids end"
        sys.exit(f"{problem} in {text}.")
    return matching[0]


def _short(id_: UUID) -> str:
    # Version 7 ids begin with the time, so it is the end that differs.
    return id_.hex[-8:]


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _summary(letter: DeadLetter) -> str:
    line = " ".join(letter.error.split())
    return line if len(line) <= _ERROR_WIDTH else f"{line[: _ERROR_WIDTH - 3]}..."


def _print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    rows = [tuple(map(_printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        _say("  ".join(cells).rstrip())


def _say(text: str) -> None:
    print("\n".join(map(_printable, text.split("\n"))))  # noqa: T201


def _printable(text: str) -> str:
    """Escape what a terminal might obey: errors and payloads hold what strangers have sent."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


_COMMANDS = {"list": _list, "show": _show, "retry": _retry, "discard": _discard}

if __name__ == "__main__":
    main()
