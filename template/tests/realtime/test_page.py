"""The page to try channels with."""

import httpx2
import pytest

from app import lifespan
from app.core.channels import Channel
from tests.fixtures.application import Connect, MakeApp
from tests.fixtures.server import Serve


async def test_the_page_is_shown_in_development_and_may_open_sockets(
    make_app: MakeApp, connect: Connect
) -> None:
    async with connect(make_app()) as client:
        response = await client.get("/docs/realtime")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "/api/v1/ws" in response.text
    assert "connect-src 'self'" in response.headers["content-security-policy"]
    assert "aria-current=page>Channels</a>" in response.text


async def test_the_page_offers_the_channels_by_name(
    make_app: MakeApp, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = {name: Channel(name, messages=()) for name in ("news", '"><b>', "blogs")}
    monkeypatch.setattr(lifespan, "find_channels", lambda: channels)
    async with connect(make_app()) as client:
        page = (await client.get("/docs/realtime")).text
    assert '<option value="&quot;&gt;&lt;b&gt;"><option value="blogs"><option value="news">' in page


async def test_the_page_is_hidden_in_production(serve: Serve) -> None:
    async with serve() as server, httpx2.AsyncClient(base_url=server.url) as client:
        assert (await client.get("/docs/realtime")).status_code == 404
