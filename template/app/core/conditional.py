"""Conditional requests (RFC 9110): 304 for readers that are up to date, 412 for stale writers."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Response

from app.core.errors import PreconditionFailedError

# RFC 9110, section 8.8.3: a comma may be part of a tag, so the list cannot simply be split.
_ENTITY_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_TAG_LIST = re.compile(rf"[ \t,]*(?:{_ENTITY_TAG}[ \t]*(?:,[ \t,]*|$))*")
_TAG = re.compile(_ENTITY_TAG)


def etag(*parts: object) -> str:
    """The strong entity tag of a representation.

    Args:
        parts: What changes whenever the representation does, such as the resource's id and its
            version number.
    """
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode())
    return f'"{digest.hexdigest()[:32]}"'


@dataclass(frozen=True, slots=True)
class Preconditions:
    """The `If-Match` and `If-None-Match` of a request; `None` where the header is absent."""

    if_match: frozenset[str] | None = None
    if_none_match: frozenset[str] | None = None

    def require_match(self, current: str) -> None:
        """Refuse a write that was decided on an older representation.

        Call it after every other check and right before the change, while the resource is locked
        or under its version counter: RFC 9110, section 13.2.1, lets a 404 or 409 go first.

        Args:
            current: The entity tag of the resource as it is now.

        Raises:
            PreconditionFailedError: when `If-Match` names other tags, or `If-None-Match` this one.
                A weak tag and a malformed header match nothing in `If-Match`, so that a write is
                never done on a misunderstanding.
        """
        if self.if_match is not None and not {"*", current} & self.if_match:
            raise PreconditionFailedError("The resource has changed since it was read.")
        if self.not_modified(current) is not None:
            # Section 13.1.2: for a write this is no 304.
            raise PreconditionFailedError("The resource is what `If-None-Match` excludes.")

    def not_modified(self, current: str) -> Response | None:
        """The 304 to answer when the client already has this representation, else `None`.

        Args:
            current: The entity tag of the representation that would be sent.
        """
        if self.if_none_match is None:
            return None
        # Section 13.1.2: readers compare weakly, so W/"x" and "x" are the same.
        held = {tag.removeprefix("W/") for tag in self.if_none_match}
        if "*" in held or current in held:
            return Response(status_code=304, headers={"ETag": current})
        return None


async def get_preconditions(request: Request) -> Preconditions:
    """Read the request's preconditions; a malformed header is one that matches nothing."""
    headers = request.headers
    return Preconditions(
        if_match=_parse(headers.getlist("if-match")),
        if_none_match=_parse(headers.getlist("if-none-match")),
    )


def _parse(lines: Sequence[str]) -> frozenset[str] | None:
    if not lines:
        return None
    # Section 5.3: several lines of a list header mean the same as one with commas.
    value = ", ".join(lines)
    if value.strip() == "*":
        return frozenset("*")
    if not _TAG_LIST.fullmatch(value):
        return frozenset()
    return frozenset(_TAG.findall(value))


PreconditionsDep = Annotated[Preconditions, Depends(get_preconditions)]
