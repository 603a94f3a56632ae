"""The acting principal."""

from collections.abc import Iterator

import pytest
import structlog
from starlette.requests import HTTPConnection

from app.core.principal import ANONYMOUS, Principal, get_principal, set_principal


@pytest.fixture(autouse=True)
def _clean_log_context() -> Iterator[None]:
    with structlog.contextvars.bound_contextvars():
        yield
    structlog.contextvars.unbind_contextvars("principal")


async def test_without_a_guard_the_principal_is_anonymous() -> None:
    principal = await get_principal(HTTPConnection({"type": "http", "state": {}}))
    assert principal is ANONYMOUS
    assert principal.is_anonymous


async def test_a_guard_sets_the_principal_of_this_request_and_of_its_log_lines() -> None:
    connection = HTTPConnection({"type": "http", "state": {}})
    set_principal(connection, Principal("42"))
    # Each dependency may hold an object of its own for the same request.
    principal = await get_principal(HTTPConnection(connection.scope))
    assert principal == Principal("42")
    assert not principal.is_anonymous
    assert structlog.contextvars.get_contextvars()["principal"] == "42"
