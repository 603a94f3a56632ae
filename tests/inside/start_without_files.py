"""Imports a service and opens its resources while it may write no file and start no process.

Run in the folder of the service with its own Python. Audit hooks (PEP 578) are told what Python
does, not what C libraries do, such as SQLite with its file.
"""

import asyncio
import importlib.util
import os
import sys

COMMANDS = ("app.main", "app.worker", "app.create_admin", "app.dead_letters")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
REFUSED = {
    *("os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink"),
    *("os.truncate", "os.utime", "shutil.rmtree", "tempfile.mkdtemp", "tempfile.mkstemp"),
    *("os.exec", "os.posix_spawn", "os.system", "subprocess.Popen"),
}
# While modules are imported; later the service looks for its servers.
NETWORK = {"socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname"}

refused = REFUSED | NETWORK


def hook(event: str, arguments: tuple[object, ...]) -> None:
    """Raise for what a read-only machine without a network would not do."""
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
    if (writes and arguments[0] != os.devnull) or event in refused:
        raise OSError(30, f"refused: {event} {arguments!r}")


async def start() -> None:
    """Open the service's resources, as a server does before its first request."""
    app = sys.modules["app.main"].create_app()
    async with app.router.lifespan_context(app):
        pass


sys.addaudithook(hook)
for module in COMMANDS:
    if importlib.util.find_spec(module):
        importlib.import_module(module)
refused -= NETWORK
asyncio.run(start())
