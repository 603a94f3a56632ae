"""The first admin's account, from the command line: `python -m app.create_admin EMAIL`."""

import argparse
import asyncio
import sys
from getpass import getpass
from uuid import UUID

from pydantic import SecretStr, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from app.api import subscribe
from app.core.background import BackgroundRunner
from app.core.database import Database
from app.core.errors import AppError
from app.core.events import EventBus
from app.core.logging import configure_logging
from app.core.passwords import Passwords
from app.core.security import Role
from app.settings import InvalidSettingsError, Settings, load_settings
from app.users.schemas import UserRegister
from app.users.service import CredentialService


def main(arguments: list[str] | None = None) -> None:
    """Make the account of an admin, who may make admins of others through the API.

    The password is asked for in a terminal, and read from the first line of the input otherwise:
    arguments are visible to everybody on the machine.

    Raises:
        SystemExit: with what is wrong with the environment, the database, the address or the
            password.
    """
    parser = argparse.ArgumentParser(prog="python -m app.create_admin", description=__doc__)
    parser.add_argument("email", help="the address to log in with")
    parser.add_argument("--name", help="the full name")
    parsed = parser.parse_args(arguments)
    try:
        settings = load_settings()
        configure_logging(settings)
        request = UserRegister(email=parsed.email, full_name=parsed.name, password=_password())
        user_id = asyncio.run(_create(settings, request))
    except InvalidSettingsError as error:
        message = f"The environment cannot be used:\n{error}"
        raise SystemExit(message) from None
    except ValidationError as error:
        lines = (f"{problem['loc'][0]}: {problem['msg']}" for problem in error.errors())
        raise SystemExit("\n".join(lines)) from None
    except AppError as error:
        raise SystemExit(str(error)) from None
    except SQLAlchemyError as error:
        # Without the statement, and the link to an explanation.
        reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
        message = f"The database cannot be used: {reason}"
        raise SystemExit(message) from None
    except (EOFError, KeyboardInterrupt):
        raise SystemExit("No account is made.") from None
    print(f"The admin's account is made: {user_id}")  # noqa: T201


def _password() -> SecretStr:
    if not sys.stdin:
        raise SystemExit("The password is read from the input, which is closed.")
    if not sys.stdin.isatty():
        return SecretStr(sys.stdin.readline().rstrip("\r\n"))
    password = getpass("Password: ")
    if getpass("Again: ") != password:
        raise SystemExit("The two are not the same.")
    return SecretStr(password)


async def _create(settings: Settings, request: UserRegister) -> UUID:
    async with BackgroundRunner(settings) as background:
        events = EventBus(background)
        subscribe(events)
        database = Database(settings, events)
        try:
            credentials = CredentialService(database, Passwords(settings))
            return (await credentials.register(request, Role.ADMIN)).id
        finally:
            await database.close()


if __name__ == "__main__":
    main()
