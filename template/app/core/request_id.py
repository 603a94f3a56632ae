"""The id that ties a request's answer, its log lines and its calls to other services together."""

import re
from collections.abc import Iterable

from uuid_utils.compat import uuid7

HEADER = "X-Request-ID"

_HEADER = HEADER.lower().encode()
# Anything else could forge log lines or headers, or fill the logs.
_VALID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


def choose_request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's id when it sent exactly one that is valid, otherwise a fresh UUIDv7 in hex.

    Args:
        headers: The request's headers as in the ASGI scope.
    """
    sent = [value for name, value in headers if name == _HEADER]
    # fullmatch: `$` would let a trailing newline through.
    if len(sent) == 1 and _VALID.fullmatch(sent[0]):
        return sent[0].decode("ascii")
    return uuid7().hex
