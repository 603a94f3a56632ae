"""Errors as problem details: what the client is told, and what it is not."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Query
from pydantic import BaseModel, ConfigDict, Field, field_validator

from app.core.errors import (
    AppError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    PreconditionFailedError,
    ServiceUnavailableError,
    TooManyRequestsError,
    UnauthenticatedError,
    UnprocessableError,
    responses,
)
from tests.core.stack import build_app, client_of

STANDARD_MEMBERS = {"type", "title", "status", "detail", "instance", "request_id"}
STATUSES = {
    UnauthenticatedError: 401,
    ForbiddenError: 403,
    NotFoundError: 404,
    ConflictError: 409,
    PreconditionFailedError: 412,
    UnprocessableError: 422,
    TooManyRequestsError: 429,
    ServiceUnavailableError: 503,
}
ERRORS: dict[str, Exception] = {kind.__name__: kind() for kind in STATUSES}


class OutOfStockError(ConflictError):
    """A domain's own error."""

    code = "out-of-stock"
    title = "Out of stock"


class Order(BaseModel):
    """A body with several ways to be wrong."""

    model_config = ConfigDict(extra="forbid")

    quantity: int = Field(ge=1)
    card: str = "4111"

    @field_validator("card")
    @classmethod
    def refuse_long_cards(cls, card: str) -> str:
        """Raise an error whose context holds an exception object."""
        if len(card) > 16:
            message = "the card number is too long"
            raise ValueError(message)
        return card


router = APIRouter()


@router.get("/errors/{name}")
async def fail(name: str) -> None:
    """Raise what the test has prepared."""
    raise ERRORS[name]


@router.post("/books", responses=responses(409))
async def place(order: Order, page: Annotated[int, Query(ge=1)] = 1) -> Order:
    """Take an order."""
    return order


@router.get("/plain")
async def plain() -> int:
    """A route without parameters, which FastAPI documents without any error."""
    return 1


@pytest.fixture
def service() -> FastAPI:
    return build_app(router)


@pytest.fixture
async def client(service: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(service) as client:
        yield client


def raising(monkeypatch: pytest.MonkeyPatch, error: Exception) -> str:
    """Prepare the error and return the path that raises it."""
    monkeypatch.setitem(ERRORS, "prepared", error)
    return "/errors/prepared"


def problem(response: httpx2.Response) -> dict[str, Any]:
    """Check what every problem has in common and return its body."""
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body.keys() >= STANDARD_MEMBERS
    assert body["status"] == response.status_code
    assert body["request_id"] == response.headers["x-request-id"]
    return body


@pytest.mark.parametrize(("kind", "status"), STATUSES.items())
async def test_an_error_is_answered_with_its_status(
    client: httpx2.AsyncClient, kind: type[AppError], status: int
) -> None:
    response = await client.get(f"/errors/{kind.__name__}")
    assert response.status_code == status
    body = problem(response)
    assert body["type"] == "about:blank"
    assert body["instance"] == f"/errors/{kind.__name__}"


async def test_a_domain_error_names_its_kind_and_what_happened(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = OutOfStockError("Two are left.", extensions={"left": 2, "status": 200})
    body = problem(await client.get(raising(monkeypatch, error)))
    assert body["type"] == "urn:problem:out-of-stock"
    assert body["title"] == "Out of stock"
    assert body["detail"] == "Two are left."
    assert body["left"] == 2
    assert str(error) == "Two are left."


async def test_the_headers_of_an_error_are_sent(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = TooManyRequestsError(headers={"Retry-After": "7"})
    response = await client.get(raising(monkeypatch, limited))
    assert response.headers["retry-after"] == "7"
    teapot = HTTPException(418, "short and stout", headers={"X-Pot": "tea"})
    response = await client.get(raising(monkeypatch, teapot))
    assert response.headers["x-pot"] == "tea"
    assert problem(response)["detail"] == "short and stout"


async def test_a_401_says_how_to_authenticate_and_a_503_when_to_return(
    client: httpx2.AsyncClient,
) -> None:
    response = await client.get("/errors/UnauthenticatedError")
    assert response.headers["www-authenticate"] == "Bearer"
    response = await client.get("/errors/ServiceUnavailableError")
    assert response.headers["retry-after"] == "1"


async def test_an_unknown_path_is_a_problem(client: httpx2.AsyncClient) -> None:
    response = await client.get('/nowhere/é%20"?secret=1')
    assert response.status_code == 404
    assert problem(response)["instance"] == "/nowhere/%C3%A9%20%22"
    assert "secret" not in response.text


async def test_a_wrong_method_is_a_problem_that_names_the_right_ones(
    client: httpx2.AsyncClient,
) -> None:
    response = await client.delete("/books")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    problem(response)


async def test_details_that_are_an_object_become_members_of_the_problem(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = HTTPException(409, {"left": 2, "status": "gone"})
    body = problem(await client.get(raising(monkeypatch, error)))
    assert body["left"] == 2
    assert body["detail"] == body["title"] == "Conflict"


async def test_a_status_without_a_name_is_still_a_problem(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = problem(await client.get(raising(monkeypatch, HTTPException(499, "gone"))))
    assert body["title"] == "Error"


async def test_an_invalid_request_lists_places_and_reasons_but_no_values(
    client: httpx2.AsyncClient,
) -> None:
    secret = "4111111111111111-secret"
    response = await client.post(
        "/books", params={"page": 0}, json={"quantity": "many", "card": secret}
    )
    assert response.status_code == 422
    body = problem(response)
    assert [error["loc"] for error in body["errors"]] == [
        ["query", "page"],
        ["body", "quantity"],
        ["body", "card"],
    ]
    assert all(error.keys() == {"loc", "msg", "type"} for error in body["errors"])
    assert body["errors"][2]["msg"] == "Value error, the card number is too long"
    assert secret not in response.text
    assert "many" not in response.text


async def test_an_answer_does_not_outgrow_a_request_full_of_errors(
    client: httpx2.AsyncClient,
) -> None:
    flood = {f"{number}{'x' * 1000}": 0 for number in range(500)}
    response = await client.post("/books", json={"quantity": 1, **flood})
    assert response.status_code == 422
    body = problem(response)
    assert len(body["errors"]) == 50
    assert "the first 50" in body["detail"]
    assert body["errors"][0]["loc"] == ["body", "0" + "x" * 99]


@pytest.mark.parametrize("body", [b"{", b'{"quantity": 1', b"[1, 2"])
async def test_malformed_json_is_an_invalid_request(
    client: httpx2.AsyncClient, body: bytes
) -> None:
    headers = {"Content-Type": "application/json"}
    response = await client.post("/books", content=body, headers=headers)
    assert response.status_code == 422
    assert problem(response)["errors"][0]["type"] == "json_invalid"


async def test_text_that_utf_8_cannot_express_does_not_break_the_answer(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # JSON may escape half of a surrogate pair; whoever echoes such a name must not cause a 500.
    response = await client.get(raising(monkeypatch, NotFoundError("There is no \ud800.")))
    assert response.status_code == 404
    assert problem(response)["detail"] == "There is no \ud800."


async def test_a_service_can_report_invalid_values_itself(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = UnprocessableError(
        "No such customer.",
        errors=[{"loc": ["body", "email"], "msg": "is unknown", "type": "unknown", "input": "x"}],
    )
    body = problem(await client.get(raising(monkeypatch, error)))
    assert body["errors"] == [{"loc": ["body", "email"], "msg": "is unknown", "type": "unknown"}]


async def test_an_error_to_head_has_no_body(client: httpx2.AsyncClient) -> None:
    response = await client.head("/nowhere")
    assert response.status_code == 404
    assert response.content == b""
    assert int(response.headers["content-length"]) > 100
    # The client hides a body that came nevertheless.
    scope = {"type": "http", "method": "HEAD", "path": "/nowhere"}
    assert NotFoundError().to_response(scope).body == b""


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_that_forbids_a_body_has_none(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    error = HTTPException(status, headers={"ETag": '"1"'})
    response = await client.get(raising(monkeypatch, error))
    assert response.status_code == status
    assert response.content == b""
    assert "content-type" not in response.headers
    assert response.headers["etag"] == '"1"'


def test_the_schema_documents_every_error_as_a_problem(service: FastAPI) -> None:
    schema = service.openapi()
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    documented = schema["paths"]["/books"]["post"]["responses"]
    assert {status: documented[status]["content"] for status in ("409", "422", "default")} == {
        "409": content,
        "422": content,
        "default": content,
    }
    assert schema["paths"]["/plain"]["get"]["responses"]["default"]["content"] == content
    models = schema["components"]["schemas"]
    assert models["Problem"]["properties"].keys() >= STANDARD_MEMBERS
    assert "FieldProblem" in models
    assert not models.keys() & {"HTTPValidationError", "ValidationError"}
    assert service.openapi() == schema


def test_an_error_is_documented_under_one_name_on_every_version_of_python() -> None:
    assert responses(413)[413]["description"] == "Content Too Large"
    assert responses(422)[422]["description"] == "Unprocessable Content"


async def test_a_wrong_method_is_told_those_of_every_route_under_the_path() -> None:
    """The contract fuzz cannot check it: it compares with one path of the description."""
    own = APIRouter()

    @own.get("/books/statistics")
    async def count() -> int:
        return 1

    @own.delete("/books/{book_id}")
    async def remove(book_id: str) -> str:
        return book_id

    async with client_of(build_app(own)) as client:
        response = await client.post("/books/statistics")
        removed = await client.delete("/books/statistics")
    assert response.status_code == 405
    assert set(response.headers["allow"].split(", ")) - {"HEAD"} == {"DELETE", "GET"}
    assert removed.json() == "statistics"
