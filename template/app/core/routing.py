"""Which route a request has reached, and which methods its path has."""

from functools import lru_cache
from re import Pattern

from fastapi.routing import iter_route_contexts
from starlette.routing import compile_path
from starlette.types import Scope


def route_template(scope: Scope) -> str | None:
    """The whole path template, such as `/api/v1/books/{book_id}`; `None` when no route matched.

    A route of an included router knows its path without the prefix (`scope["route"]`); the whole
    template is in the context that FastAPI makes of it for the inclusion.
    """
    included = scope.get("fastapi", {}).get("effective_route_context")
    # Which for a WebSocket only holds a route of Starlette's, with the whole template.
    route = getattr(included, "starlette_route", None) or included or scope.get("route")
    return getattr(route, "path_format", None)


def allowed_methods(scope: Scope) -> list[str]:
    """Every method that some route offers under the request's path, for `Allow`.

    The router looks no further than the first route with that path, and RFC 9110, section 10.2.1,
    asks for all of them.
    """
    methods: set[str] = set()
    for route in iter_route_contexts(scope["app"].routes):
        if route.path and route.methods and _path_pattern(route.path).match(scope["path"]):
            methods |= route.methods
    return sorted(methods)


@lru_cache(maxsize=512)
def _path_pattern(path: str) -> Pattern[str]:
    return compile_path(path)[0]
