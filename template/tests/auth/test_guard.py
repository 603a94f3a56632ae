"""Who passes the guard: a team's own domains, and each route as its description says."""

import re

import httpx2
import pytest
from fastapi import APIRouter, FastAPI

from app import domains
from app.core.principal import PrincipalDep
from devtools.openapi import operations
from tests.fixtures.application import MakeApp
from tests.fixtures.authentication import Account

books = APIRouter(prefix="/api/v1/books", tags=["books"])
shelf = APIRouter(prefix="/api/v1/shelf", tags=["books"])


@books.get("")
@shelf.get("")
async def read(principal: PrincipalDep) -> str:
    """Tell who reads."""
    return principal.id


@pytest.fixture
def app(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """The service with a domain of its team."""
    monkeypatch.setattr(domains, "PROTECTED_ROUTERS", (books,))
    monkeypatch.setattr(domains, "PUBLIC_ROUTERS", (shelf,))
    return make_app()


async def test_a_protected_router_takes_a_token(
    anonymous_client: httpx2.AsyncClient, client: httpx2.AsyncClient, user: Account
) -> None:
    refused = await anonymous_client.get("/api/v1/books")
    answered = await client.get("/api/v1/books")

    assert refused.status_code == 401
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert (answered.status_code, answered.json()) == (200, str(user.id))


async def test_a_public_router_takes_none(anonymous_client: httpx2.AsyncClient) -> None:
    answered = await anonymous_client.get("/api/v1/shelf")

    assert (answered.status_code, answered.json()) == (200, "anonymous")
    assert "RateLimit-Limit" in answered.headers


async def test_without_a_token_each_operation_answers_as_its_description_says(
    app: FastAPI, anonymous_client: httpx2.AsyncClient
) -> None:
    described, answered = set(), set()
    for path, method, operation in operations(app.openapi()):
        url = re.sub(r"\{\w+\}", "00000000-0000-7000-8000-000000000000", path)
        answer = await anonymous_client.request(method, url)
        name = f"{method} {path}"
        if operation.get("security"):
            assert "401" in operation["responses"], name
            described.add(name)
        if answer.status_code == 401:
            answered.add(name)

    assert "get /api/v1/books" in described
    assert answered == described


async def test_the_limit_counts_users_rather_than_addresses(
    client: httpx2.AsyncClient, other_user: Account
) -> None:
    first = await client.get("/api/v1/books")
    second = await client.get("/api/v1/books")
    of_another = await client.get("/api/v1/books", headers=other_user.headers)

    left = [int(answer.headers["RateLimit-Remaining"]) for answer in (first, second, of_another)]
    assert left == [left[0], left[0] - 1, left[0]]
