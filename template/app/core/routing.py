"""Which route a request has reached, which methods its path has, and the prefix in front."""

from functools import lru_cache
from re import Pattern
from typing import Any, TypeAlias

from fastapi.routing import iter_route_contexts
from starlette.routing import compile_path
from starlette.types import Scope

Headers: TypeAlias = list[tuple[bytes, bytes]]


def matched_route(scope: Scope) -> Any:
    """What knows the matched route as it is mounted, or the route itself; `None` without a match.

    A route of an included router knows its path and its dependencies without what the inclusion
    adds (`scope["route"]`); both are in the context that FastAPI makes of it for the inclusion.
    """
    included = scope.get("fastapi", {}).get("effective_route_context")
    # Which for a WebSocket only holds a route of Starlette's, with the whole template.
    return getattr(included, "starlette_route", None) or included or scope.get("route")


def route_template(scope: Scope) -> str | None:
    """The whole path template, such as `/api/v1/books/{book_id}`; `None` when no route matched."""
    return getattr(matched_route(scope), "path_format", None)


def route_path(scope: Scope) -> str:
    """The path that routes see: without the prefix that the server is told of as `root_path`."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "")
    below = path.removeprefix(prefix)
    return below if not below or below.startswith("/") else path


def below_prefix(headers: Headers, scope: Scope) -> Headers:
    """The same headers with a `Location` that clients can follow behind `root_path`.

    Routes write a path of this service as they know it, without the prefix of a proxy; one that
    begins with the same letters, such as `/api/v1` behind `/api`, is no exception.
    """
    # The router adds where an application is mounted to `root_path`, and keeps the server's here.
    prefix: str = scope.get("app_root_path", scope.get("root_path", ""))
    if not prefix:
        return headers
    start = prefix.rstrip("/").encode()
    return [
        (name, start + value) if name == b"location" and _is_path(value) else (name, value)
        for name, value in headers
    ]


def declared_methods(scope: Scope) -> set[str]:
    """Every method that some route declares for the request's path."""
    path = route_path(scope)
    methods: set[str] = set()
    for route in iter_route_contexts(scope["app"].routes):
        if route.path and route.methods and _path_pattern(route.path).match(path):
            methods |= route.methods
    return methods


def allowed_methods(scope: Scope) -> list[str]:
    """Every method that is answered under the request's path, for `Allow`.

    The router looks no further than the first route with that path, and RFC 9110, section 10.2.1,
    asks for all of them. `HEAD` is answered wherever `GET` is.
    """
    methods = declared_methods(scope)
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


def _is_path(location: bytes) -> bool:
    return location.startswith(b"/") and not location.startswith(b"//")


@lru_cache(maxsize=512)
def _path_pattern(path: str) -> Pattern[str]:
    return compile_path(path)[0]
