"""Whom the service believes behind a Unix socket, and on a socket for both families."""

from pathlib import Path

import httpx2
import pytest
from fastapi import APIRouter, Request

from tests.core.listening import listening
from tests.core.stack import build_app, client_of

router = APIRouter()
FORWARDED = {"X-Forwarded-For": "192.0.2.66, 198.51.100.1", "X-Forwarded-Proto": "https"}


@router.get("/caller")
async def show_caller(request: Request) -> list[str | None]:
    """Who is asking, and how."""
    return [request.client.host if request.client else None, request.url.scheme]


@pytest.mark.parametrize(
    ("trusted", "caller"),
    [
        (["unix"], ["198.51.100.1", "https"]),
        (["10.0.0.0/8"], [None, "http"]),
        ([], [None, "http"]),
    ],
)
async def test_the_proxy_at_a_unix_socket_names_the_caller_if_it_is_trusted(
    tmp_path: Path, trusted: list[str], caller: list[str | None]
) -> None:
    path = str(tmp_path / "socket")
    async with (
        listening(build_app(router, TRUSTED_PROXIES=trusted), uds=path),
        httpx2.AsyncClient(transport=httpx2.AsyncHTTPTransport(uds=path)) as client,
    ):
        answer = await client.get("http://x/caller", headers=FORWARDED)
    assert answer.json() == caller


async def test_whoever_comes_over_the_network_is_no_unix_socket() -> None:
    async with client_of(build_app(router, TRUSTED_PROXIES=["unix"])) as client:
        answer = await client.get("/caller", headers=FORWARDED)
    assert answer.json() == ["203.0.113.7", "http"]


async def test_an_ipv4_proxy_is_known_on_a_socket_for_both_families() -> None:
    app = build_app(router, TRUSTED_PROXIES=["10.0.0.0/8"])
    async with client_of(app, address="::ffff:10.0.0.1") as client:
        answer = await client.get("/caller", headers=FORWARDED)
    assert answer.json() == ["198.51.100.1", "https"]
