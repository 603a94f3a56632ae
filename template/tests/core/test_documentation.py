"""The pages of development: what they load, what they may load, and whose scripts are run."""

import base64
import hashlib
import html
import json
import re
from urllib.parse import urljoin

import httpx2
import pytest
from fastapi import FastAPI, Request

from app.core.documentation import docs_page, install_documentation
from tests.fixtures.application import open_client


@pytest.fixture
def service() -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, title="Shop & Co")
    install_documentation(app)
    return app


@pytest.fixture
def pages(service: FastAPI) -> httpx2.AsyncClient:
    return open_client(service, {})


def links(page: httpx2.Response) -> list[str]:
    found = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    return [urljoin(str(page.url), html.unescape(link)) for link in found if link != "data:,"]


async def test_all_that_the_page_loads_is_served_by_the_service(pages: httpx2.AsyncClient) -> None:
    page = await pages.get("/docs")
    assert "<title>Shop &amp; Co</title>" in page.text
    assert len(links(page)) == 5
    for link in links(page):
        assert link.startswith("http://testserver/docs")
        assert (await pages.get(link)).status_code == 200
    script = await pages.get("/docs/static/swagger-ui-bundle.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert "SwaggerUIBundle" in script.text


async def test_no_file_beside_them_is_served(pages: httpx2.AsyncClient) -> None:
    for path in ("none.css", "%2e%2e/swagger.html", "..%2fswagger.html"):
        assert (await pages.get(f"/docs/static/{path}")).status_code == 404


@pytest.mark.parametrize("path", ["/docs", "/docs/oauth2-redirect"])
async def test_the_policy_allows_the_scripts_of_the_page_and_no_other_origin(
    pages: httpx2.AsyncClient, path: str
) -> None:
    page = await pages.get(path)
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "//" not in policy
    assert "https:" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    assert scripts
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


async def test_what_is_filled_in_is_not_run(
    service: FastAPI, pages: httpx2.AsyncClient, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text("<!-- header --><script>known()</script><!-- items -->", encoding="utf-8")

    @service.get("/docs/items")
    def show(request: Request) -> object:
        return docs_page(request, path, items="<script>other()</script>")

    page = await pages.get("/docs/items")
    assert "<strong>Shop &amp; Co</strong>" in page.text
    assert page.text.endswith("<script>known()</script><script>other()</script>")
    assert page.headers["content-security-policy"].count("sha256-") == 1


async def test_swagger_ui_is_configured_as_the_application_says(
    service: FastAPI, pages: httpx2.AsyncClient
) -> None:
    service.swagger_ui_parameters = {"filter": "</script>"}
    service.swagger_ui_init_oauth = {"clientId": "docs"}
    page = (await pages.get("/docs")).text
    _, _, rest = page.partition('type="application/json">')
    parameters, oauth = json.loads(rest.partition("</script>")[0])
    assert parameters["filter"] == "</script>"
    assert parameters["deepLinking"]
    assert parameters["validatorUrl"] is None
    assert oauth == {"clientId": "docs"}


async def test_the_pages_stand_below_the_prefix_of_a_proxy(service: FastAPI) -> None:
    transport = httpx2.ASGITransport(app=service, root_path="/shop")
    async with httpx2.AsyncClient(transport=transport, base_url="http://testserver") as client:
        page = await client.get("/shop/docs")
        assert page.status_code == 200
        assert '<a href="/shop/docs" aria-current=page>API</a>' in page.text
        assert '"url": "/shop/openapi.json"' in page.text
        for link in links(page):
            assert link.startswith("http://testserver/shop/docs")
            assert (await client.get(link)).status_code == 200


async def test_without_a_schema_there_is_nothing(service: FastAPI) -> None:
    hidden = FastAPI(openapi_url=None)
    install_documentation(hidden)
    async with open_client(hidden, {}) as client:
        for path in ("/docs", "/docs/static/pages.css", "/docs/oauth2-redirect"):
            assert (await client.get(path)).status_code == 404
