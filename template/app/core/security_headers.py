"""Headers that every answer carries unless its route has set them otherwise."""

from collections.abc import Mapping
from typing import TypeAlias

Headers: TypeAlias = list[tuple[bytes, bytes]]

_ALWAYS: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    # Keeps pages of other sites from embedding an answer; CORS requests are not affected.
    (b"cross-origin-resource-policy", b"same-origin"),
]
_HTTPS_ONLY = (b"strict-transport-security", b"max-age=31536000")
_CSP = b"content-security-policy"
# A page loads scripts and styles, and may have a policy of its own; data loads nothing.
_CSP_PAGE = (_CSP, b"frame-ancestors 'none'")
_CSP_DATA = (_CSP, b"default-src 'none'; frame-ancestors 'none'")
# Answers may be personal: no cache keeps one. What has an ETag is kept to be revalidated.
_NOT_STORED = (b"cache-control", b"no-store")
_REVALIDATED = (b"cache-control", b"private, no-cache")


class SecurityHeaders:
    """Completes the headers of answers."""

    def __init__(self, *, https_only: bool) -> None:
        """Choose the headers.

        Args:
            https_only: Whether to tell browsers to use HTTPS from now on (HSTS, RFC 6797); off in
                development, where it would lock out `http://localhost`.
        """
        self._always = [*_ALWAYS, _HTTPS_ONLY] if https_only else _ALWAYS

    def complete(self, headers: Headers, late: Mapping[str, str], request_id: bytes) -> Headers:
        """Return the headers to send.

        Args:
            headers: What the application has set; it wins over the defaults.
            late: What dependencies left for whatever answer is sent, errors included.
            request_id: The value of `X-Request-ID`; it wins over everything.
        """
        present = dict(headers)
        additions = [*self._always]
        if present.get(b"content-type", b"").startswith(b"text/html"):
            additions.append(_CSP_PAGE)
        else:
            additions.append(_CSP_DATA)
        additions.append(_REVALIDATED if b"etag" in present else _NOT_STORED)
        for name, value in late.items():
            additions.append((name.lower().encode("latin-1"), value.encode("latin-1")))
        complete = [header for header in headers if header[0] != b"x-request-id"]
        complete.extend(header for header in additions if header[0] not in present)
        complete.append((b"x-request-id", request_id))
        return complete
