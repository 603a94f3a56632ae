"""Which route a request has reached, as the template of its path."""

from starlette.types import Scope


def route_template(scope: Scope) -> str | None:
    """The whole path template, such as `/api/v1/orders/{order_id}`; `None` when no route matched.

    A route of an included router knows its path without the prefix (`scope["route"]`); the whole
    template is in the context that FastAPI makes of it for the inclusion.
    """
    included = scope.get("fastapi", {}).get("effective_route_context")
    return getattr(included or scope.get("route"), "path_format", None)
