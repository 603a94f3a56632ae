"""Whom the proxies in front say that they ask for."""

from ipaddress import IPv6Address

from starlette.types import Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

UNIX = "unix"
"""What names whoever connects to the service's Unix socket among trusted proxies."""

_MAPPED = "::ffff:"


class ProxyHeaders(ProxyHeadersMiddleware):
    """uvicorn's, for peers that have no address, or an IPv4 one in the form of IPv6."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # type: ignore[override]
        """Take the caller's address and scheme from the headers of a trusted proxy."""
        client = scope.get("client")
        if client and client[0].startswith(_MAPPED):
            # A socket that serves both families, as with `--host ::`.
            address = IPv6Address(client[0])
            scope["client"] = (str(address.ipv4_mapped or address), client[1])
        elif client is None and UNIX in self.trusted_hosts and _is_unix(scope):
            scope["client"] = (UNIX, 0)
        await super().__call__(scope, receive, send)  # type: ignore[arg-type]


def _is_unix(scope: Scope) -> bool:
    # The peer of a TCP connection has no address either once it has hung up.
    server = scope.get("server")
    return server is not None and server[1] is None
