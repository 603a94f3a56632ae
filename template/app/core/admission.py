"""The rate limits of a request that need not know who asks, before its body is read."""

from starlette.requests import HTTPConnection
from starlette.types import Scope

from app.core.errors import AppError, RefusedBeforeBodyError
from app.core.rate_limit import RateLimitDependency
from app.core.routing import matched_route


async def admit(scope: Scope) -> None:
    """Count a request before its body is read, if its route's limits come before any guard.

    FastAPI reads and parses a body before it runs dependencies, which costs the more the larger
    the body is, and costs it for requests that are refused, too. Limits behind a guard have to
    know the principal, and stay where they are.

    Args:
        scope: The request's ASGI scope, in which a route has been matched.

    Raises:
        RefusedBeforeBodyError: a limit is used up.
    """
    route = matched_route(scope)
    # Without one the body is read by the route itself, after its dependencies.
    if getattr(route, "body_field", None) is None:
        return
    for dependency in getattr(route, "dependencies", ()):
        limit = dependency.dependency
        if not isinstance(limit, RateLimitDependency):
            return
        try:
            await limit.count_early(HTTPConnection(scope))
        except AppError as error:
            raise RefusedBeforeBodyError(error) from error
