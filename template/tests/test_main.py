"""The service as it is put together: documentation, schema, and what production hides."""

import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from app.core.settings import Environment
from app.main import create_app
from tests.fixtures.application import Connect, MakeApp


async def test_the_interactive_documentation_works_in_development(
    make_app: MakeApp, connect: Connect
) -> None:
    async with connect(make_app(ENVIRONMENT=Environment.DEVELOPMENT)) as client:
        page = await client.get("/docs")
        schema = await client.get("/openapi.json")
    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert schema.json()["paths"].keys() >= {"/health/live", "/health/ready"}


@pytest.mark.parametrize(
    "path",
    ["/docs", "/docs/static/pages.css", "/openapi.json", "/redoc", "/docs/oauth2-redirect"],
)
async def test_production_documents_nothing(make_app: MakeApp, connect: Connect, path: str) -> None:
    async with connect(make_app(ENVIRONMENT=Environment.PRODUCTION)) as client:
        response = await client.get(path)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


async def test_production_asks_browsers_for_https(make_app: MakeApp, connect: Connect) -> None:
    async with connect(make_app(ENVIRONMENT=Environment.PRODUCTION)) as client:
        assert "strict-transport-security" in (await client.get("/health/live")).headers
    async with connect(make_app(ENVIRONMENT=Environment.DEVELOPMENT)) as client:
        assert "strict-transport-security" not in (await client.get("/health/live")).headers


async def test_a_slash_too_many_is_a_404_and_no_redirect(
    make_app: MakeApp, connect: Connect
) -> None:
    async with connect(make_app()) as client:
        response = await client.get("/health/live/", headers={"Host": "evil.example.com"})
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert "location" not in response.headers


def test_every_operation_documents_its_errors_as_problems(app: FastAPI) -> None:
    schema = app.openapi()
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            errors = operation["responses"]["default"]["content"]
            assert errors.keys() == {"application/problem+json"}, (method, path)
    assert not schema["components"]["schemas"].keys() & {"HTTPValidationError", "ValidationError"}


def test_the_title_is_the_name_of_the_service(make_app: MakeApp) -> None:
    assert make_app(APP_NAME="Shop").title == "Shop"


def test_an_invalid_environment_ends_the_start_with_a_line_for_each_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.chdir(str(tmp_path))
    monkeypatch.setenv("LOG_LEVEL", "loud")
    monkeypatch.setenv("MAX_BODY_SIZE", "large")
    with pytest.raises(SystemExit) as ended:
        create_app()
    first, *lines = str(ended.value).splitlines()
    assert first == "The service cannot start with this environment:"
    assert {line.partition(":")[0] for line in lines} >= {"LOG_LEVEL", "MAX_BODY_SIZE"}


def test_the_environment_is_enough_to_build_the_service(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object, database_url: str
) -> None:
    monkeypatch.chdir(str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", SecretStr(database_url).get_secret_value())
    monkeypatch.setenv("APP_NAME", "Shop")
    assert create_app().title == "Shop"
