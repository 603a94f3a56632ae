"""The database of development: an embedded Postgres whose data outlives it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devtools.postgresql_binaries import PostgresNotFoundError
from devtools.postgresql_sharing import shared_server


@contextmanager
def development_database(folder: Path) -> Iterator[str]:
    """The URL of the database in `folder`; several processes may use it at once.

    Raises:
        SystemExit: it cannot be started; says why.
    """
    try:
        with shared_server(folder / "postgresql", throwaway=False) as server:
            yield server.url()
    except (PostgresNotFoundError, RuntimeError) as error:
        raise SystemExit(str(error)) from None
