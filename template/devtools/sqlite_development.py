"""The database of development: a file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def development_database(folder: Path) -> Iterator[str]:
    """The URL of the database in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    yield f"sqlite:///{folder.resolve() / 'development.db'}"
