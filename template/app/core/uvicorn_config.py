"""The configuration of the server, for what ASGI has no words for."""

import signal
from typing import Any


def uvicorn_config() -> Any:
    """The configuration of the uvicorn that runs this process; `None` under another server.

    What is changed in it counts for each connection that is made from then on. Call it before the
    server's signal handlers are replaced.
    """
    # They are methods of the server.
    handler = signal.getsignal(signal.SIGTERM)
    return getattr(getattr(handler, "__self__", None), "config", None)
