"""One Valkey server for several processes: the first starts it, it ends after the last."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devtools.sharing import keep, shared
from devtools.valkey import Server, ValkeyNotFoundError, ValkeyServer


@contextmanager
def shared_server(folder: Path, *, throwaway: bool) -> Iterator[Server]:
    """Use the server of `folder`, starting it when nobody does yet.

    Args:
        folder: Where its files are.
        throwaway: Trade durability for speed and delete the data after the last user.

    Raises:
        RuntimeError: it did not start, or there are no programs to run; says why.
    """
    with shared("devtools.valkey_sharing", folder, throwaway=throwaway) as (port, password):
        yield Server(port, password)


if __name__ == "__main__":
    keep(ValkeyServer, ValkeyNotFoundError)
