"""The service under a path prefix, as `--root-path` tells it of what a proxy takes off."""

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter, Response
from fastapi.responses import RedirectResponse

from tests.core.listening import listening
from tests.core.stack import build_app

router = APIRouter()


@router.post("/items")
async def add(location: str) -> Response:
    """Say where it is, as routes do."""
    return Response(status_code=201, headers={"Location": location})


@router.get("/moved")
async def move() -> RedirectResponse:
    """Send the client elsewhere."""
    return RedirectResponse("/items")


@router.get("/health/live")
async def live() -> str:
    """A probe."""
    return "alive"


@pytest.fixture
async def client(anyio_backend: Any) -> AsyncIterator[httpx2.AsyncClient]:
    app = build_app(router, TRUSTED_HOSTS=["api.example.com"])
    async with listening(app, root_path="/shop") as server:
        port = server.servers[0].sockets[0].getsockname()[1]
        headers = {"Host": "api.example.com"}
        url = f"http://127.0.0.1:{port}"
        async with httpx2.AsyncClient(base_url=url, headers=headers) as client:
            yield client


async def test_probes_may_call_by_address(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/health/live", headers={"Host": "10.1.2.3:8000"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("/items/1", "/shop/items/1"),
        ("/shopping/1", "/shop/shopping/1"),
        # Routes may begin as the prefix does.
        ("/shop/items/1", "/shop/shop/items/1"),
        ("https://other.example.com/items", "https://other.example.com/items"),
        ("//other.example.com/items", "//other.example.com/items"),
        ("items/1", "items/1"),
    ],
)
async def test_a_location_can_be_followed(
    client: httpx2.AsyncClient, written: str, sent: str
) -> None:
    answer = await client.post("/items", params={"location": written})
    assert answer.headers["location"] == sent


async def test_a_redirect_stays_below_the_prefix(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/moved")).headers["location"] == "/shop/items"


async def test_a_405_names_the_methods(client: httpx2.AsyncClient) -> None:
    answer = await client.delete("/moved")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert answer.json()["instance"] == "/shop/moved"
