"""The Redis of development: an embedded Valkey whose data outlives it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devtools.valkey import ValkeyNotFoundError
from devtools.valkey_sharing import shared_server


@contextmanager
def development_redis(folder: Path) -> Iterator[str]:
    """The URL of the server in `folder`; several processes may use it at once.

    Raises:
        SystemExit: it cannot be started; says why.
    """
    try:
        with shared_server(folder / "valkey", throwaway=False) as server:
            yield server.url()
    except (ValkeyNotFoundError, RuntimeError) as error:
        raise SystemExit(str(error)) from None
