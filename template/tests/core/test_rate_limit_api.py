"""The rate limit in front of routes, through the whole stack."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request
from pydantic import BaseModel

from app.core.errors import NotFoundError
from app.core.principal import Principal, set_principal
from app.core.rate_limit import rate_limit
from tests.fixtures.application import ServeRouter


async def guard(request: Request, user: Annotated[str | None, Header()] = None) -> None:
    """Trust whoever says who they are."""
    if user:
        set_principal(request, Principal(user))


class Item(BaseModel):
    """A body that can be invalid."""

    number: int


api = APIRouter(prefix="/api/v1/items", dependencies=[Depends(guard), Depends(rate_limit())])
strict = [Depends(rate_limit(2, 60))]
shared = [Depends(rate_limit(2, 60, scope="shared"))]


@api.get("/{item_id}")
async def read_item(item_id: int) -> dict[str, int]:
    """Answer, or fail in the way that the id asks for."""
    if item_id == 404:
        raise NotFoundError
    if item_id == 500:
        raise RuntimeError("secret")
    return {"id": item_id}


@api.post("")
async def add_item(item: Item) -> Item:
    """Take an item."""
    return item


@api.get("/{item_id}/strict", dependencies=strict)
async def read_strict(item_id: int) -> int:
    """Limited twice: here and by the router."""
    return item_id


@api.get("/shared/one", dependencies=shared)
async def read_one() -> int:
    """One of two routes with one budget."""
    return 1


@api.get("/shared/two", dependencies=shared)
async def read_two() -> int:
    """The other of two routes with one budget."""
    return 2


router = APIRouter()
router.include_router(api)
# A second list with the same paths under another prefix.
router.include_router(api, prefix="/v2")


async def test_the_limit_of_the_settings_and_its_headers(serve_router: ServeRouter) -> None:
    async with serve_router(router, RATE_LIMIT_REQUESTS=2, RATE_LIMIT_WINDOW_SECONDS=60) as client:
        for remaining in ("1", "0"):
            answer = await client.get("/api/v1/items/1")
            assert answer.status_code == 200
            assert answer.headers["RateLimit-Limit"] == "2"
            assert answer.headers["RateLimit-Remaining"] == remaining
            assert 59 <= int(answer.headers["RateLimit-Reset"]) <= 60
            assert "Retry-After" not in answer.headers
        refused = await client.get("/api/v1/items/1")
        assert refused.status_code == 429
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.headers["RateLimit-Remaining"] == "0"
        assert refused.headers["Retry-After"] == refused.headers["RateLimit-Reset"]
        assert refused.json()["status"] == 429


async def test_after_retry_after_the_request_passes(serve_router: ServeRouter) -> None:
    async with serve_router(router, RATE_LIMIT_REQUESTS=1, RATE_LIMIT_WINDOW_SECONDS=1) as client:
        while (refused := await client.get("/api/v1/items/1")).status_code == 200:
            pass
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        # The event loop can end a wait a millisecond early.
        await asyncio.sleep(1.01)
        assert (await client.get("/api/v1/items/1")).status_code == 200


async def test_exactly_the_limit_of_many_concurrent_requests_is_answered(
    serve_router: ServeRouter,
) -> None:
    async with serve_router(router, RATE_LIMIT_REQUESTS=10) as client:
        answers = await asyncio.gather(*(client.get("/api/v1/items/1") for _ in range(60)))
    assert sorted(answer.status_code for answer in answers) == [200] * 10 + [429] * 50


async def test_errors_of_a_limited_route_carry_the_headers_and_count(
    serve_router: ServeRouter,
) -> None:
    async with serve_router(router, RATE_LIMIT_REQUESTS=10) as client:
        answers = [await client.get(f"/api/v1/items/{item}") for item in ("404", "500", "x")]
        answers.append(await client.post("/api/v1/items", json={"number": "x"}))
    assert [answer.status_code for answer in answers] == [404, 500, 422, 422]
    assert [answer.headers["RateLimit-Remaining"] for answer in answers] == ["9", "8", "7", "9"]
    assert "secret" not in answers[1].text


async def test_the_paths_of_one_route_share_a_budget_and_other_routes_have_their_own(
    serve_router: ServeRouter,
) -> None:
    async with serve_router(router, RATE_LIMIT_REQUESTS=1) as client:
        assert (await client.get("/api/v1/items/1")).status_code == 200
        assert (await client.get("/api/v1/items/2")).status_code == 429
        assert (await client.get("/v2/api/v1/items/1")).status_code == 200
        assert (await client.post("/api/v1/items", json={"number": 1})).status_code == 200


async def test_each_principal_has_their_own_budget(serve_router: ServeRouter) -> None:
    async with serve_router(router, RATE_LIMIT_REQUESTS=1) as client:
        for user in ("a", "b", ""):
            statuses = [
                (await client.get("/api/v1/items/1", headers={"user": user})).status_code
                for _ in range(2)
            ]
            assert statuses == [200, 429]


async def test_of_two_limits_the_headers_tell_of_the_one_that_is_closer(
    serve_router: ServeRouter,
) -> None:
    async with serve_router(router, RATE_LIMIT_REQUESTS=100) as client:
        answer = await client.get("/api/v1/items/1/strict")
        assert (answer.headers["RateLimit-Limit"], answer.headers["RateLimit-Remaining"]) == (
            "2",
            "1",
        )
        statuses = [(await client.get("/api/v1/items/1/strict")).status_code for _ in range(2)]
        assert statuses == [200, 429]
    async with serve_router(router, RATE_LIMIT_REQUESTS=1) as client:
        answer = await client.get("/api/v1/items/1/strict", headers={"user": "b"})
        assert (answer.headers["RateLimit-Limit"], answer.headers["RateLimit-Remaining"]) == (
            "1",
            "0",
        )


async def test_routes_of_one_scope_share_a_budget(serve_router: ServeRouter) -> None:
    async with serve_router(router, RATE_LIMIT_REQUESTS=100) as client:
        paths = ["one", "two", "one"]
        answers = [await client.get(f"/api/v1/items/shared/{path}") for path in paths]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
