"""Which sites' pages may open a WebSocket: browsers send cookies along and ask nobody (CORS)."""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection


def is_allowed_origin(connection: HTTPConnection, allowed: Collection[str]) -> bool:
    """Whether the page that asks is ours, or of a site in `allowed`.

    Programs other than browsers send no `Origin` and are let through.

    Args:
        connection: The handshake.
        allowed: Origins such as `https://app.example.com`, or `*` for every site.
    """
    origin = connection.headers.get("origin")
    if origin is None or origin in allowed or "*" in allowed:
        return True
    try:
        # Without the scheme: TLS may end at a proxy.
        return urlsplit(origin).netloc == connection.headers.get("host", "").lower() != ""
    except ValueError:
        return False
