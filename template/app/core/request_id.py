"""The id that ties a request's answer, its log lines and its calls to other services together."""

import re
from collections.abc import Iterable

from uuid_utils.compat import uuid7

HEADER = "X-Request-ID"

_HEADER = HEADER.lower().encode()
_TRACEPARENT = b"traceparent"
# Anything else could forge log lines or headers, or fill the logs.
_VALID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
# Version, trace, parent, flags: https://www.w3.org/TR/trace-context/#traceparent-header
_VALID_TRACEPARENT = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


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


def choose_trace_context(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """What the logs say of the trace that the request belongs to; empty when it is in none.

    Args:
        headers: The request's headers as in the ASGI scope.
    """
    sent = [value for name, value in headers if name == _TRACEPARENT]
    if len(sent) == 1 and _VALID_TRACEPARENT.fullmatch(sent[0]):
        return {"traceparent": sent[0].decode("ascii")}
    return {}
