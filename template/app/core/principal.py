"""Who acts in a request: set by a guard, asked for by every domain."""

from dataclasses import dataclass
from typing import Annotated

import structlog
from fastapi import Depends
from starlette.requests import HTTPConnection


@dataclass(frozen=True, slots=True)
class Principal:
    """The one on whose behalf a request acts.

    Owners, rate limits, idempotency keys and caches are keyed by `id`, so it must be stable and
    must never be an e-mail address or anything else that a log line may not hold.
    """

    id: str

    @property
    def is_anonymous(self) -> bool:
        """Whether no guard has said who acts."""
        return self.id == ANONYMOUS.id


ANONYMOUS = Principal("anonymous")


def set_principal(connection: HTTPConnection, principal: Principal) -> None:
    """Say who acts in this request; for guards, before anything asks.

    The id is in every later log line of the request.
    """
    connection.state.principal = principal
    structlog.contextvars.bind_contextvars(principal=principal.id)


def principal_of(connection: HTTPConnection) -> Principal:
    """Who acts in this request; `ANONYMOUS` where no guard has said so."""
    # Not `connection.state`: a missing attribute costs an exception, on each limited request.
    principal: Principal = connection.scope.get("state", {}).get("principal", ANONYMOUS)
    return principal


async def get_principal(connection: HTTPConnection) -> Principal:
    """Give the acting principal to a route or to a dependency."""
    return principal_of(connection)


PrincipalDep = Annotated[Principal, Depends(get_principal)]
