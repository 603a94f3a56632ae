"""The form of every error answer: RFC 9457 problem details, also in the OpenAPI schema."""

import json
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from itertools import islice
from typing import Any
from urllib.parse import quote

import orjson
from fastapi import FastAPI, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Scope

from app.core.telemetry import trace_id

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 50
MAX_NAME = 100
_SCHEMA_PATH = "#/components/schemas/"
# Python 3.13 renamed these (RFC 9110); the service answers the same on every version.
_PHRASES = {413: "Content Too Large", 422: "Unprocessable Content"}
_RESERVED = frozenset({"type", "title", "status", "detail", "instance", "request_id", "trace_id"})


class FieldProblem(BaseModel):
    """One value of the request that was refused; the value itself is never sent back."""

    loc: list[str | int] = Field(description="Where: `body`, `query`, `path` or `header`, and on.")
    msg: str = Field(description="What is wrong, for people.")
    type: str = Field(description="What is wrong, for programs.")


class Problem(BaseModel):
    """Problem details (RFC 9457): the body of every answer from 400 on."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="The kind of problem; `about:blank` means what the status says.")
    title: str = Field(description="The kind of problem in words, the same for every occurrence.")
    status: int = Field(description="The HTTP status.", ge=400, le=599)
    detail: str = Field(description="What happened this time.")
    instance: str = Field(description="The path that was asked for.")
    request_id: str = Field(description="The request's id, as in `X-Request-ID` and the logs.")
    errors: list[FieldProblem] = Field(
        default_factory=list, description="The refused values of a request that is not valid."
    )


def problem_response(
    scope: Scope,
    status: int,
    *,
    detail: str | None = None,
    code: str | None = None,
    title: str | None = None,
    headers: Mapping[str, str] | None = None,
    extensions: Mapping[str, Any] | None = None,
) -> Response:
    """Build the answer to a request that failed.

    Args:
        scope: The request's ASGI scope.
        status: The HTTP status; 1xx, 204 and 304 are sent without a body, as HTTP demands.
        detail: What happened, in words fit for the client; the status's phrase when omitted.
        code: A slug that names the kind of problem, for `type`.
        title: The kind of problem in words; the status's phrase when omitted.
        headers: Sent along, such as `Retry-After`.
        extensions: Further members of the body; they cannot replace the standard ones.
    """
    if status < HTTPStatus.OK or status in {204, 304}:
        return Response(status_code=status, headers=headers)
    phrase = _phrase(status)
    body = {
        "type": f"urn:problem:{code}" if code else "about:blank",
        "title": title or phrase,
        "status": status,
        "detail": detail or phrase,
        "instance": quote(scope["path"], safe="/:@!$&'()*+,;=~"),
        "request_id": scope.get("state", {}).get("request_id", ""),
    }
    if trace := trace_id():
        body["trace_id"] = trace
    body |= {name: value for name, value in (extensions or {}).items() if name not in _RESERVED}
    content = _serialize(body)
    response = Response(content, status, headers, media_type=MEDIA_TYPE)
    if scope.get("method") == "HEAD":
        # The length stays that of the body which GET would have got (RFC 9110, section 9.3.2).
        response.body = b""
    return response


def field_problems(errors: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Reduce pydantic's errors to what the client may see: neither input nor context objects.

    Only the first 50 are listed, and long names are cut: the answer must not outgrow the request.
    """
    return [
        {
            "loc": [part[:MAX_NAME] if isinstance(part, str) else part for part in error["loc"]],
            "msg": error["msg"],
            "type": error["type"],
        }
        for error in islice(errors, MAX_ERRORS)
    ]


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document errors on a route or router: `APIRouter(responses=responses(404, 409))`."""
    return {status: {"model": Problem, "description": _phrase(status)} for status in statuses}


def document_problems(app: FastAPI) -> None:
    """Make the OpenAPI schema tell the truth: each error, 422 included, is a `Problem`."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        _describe_problems(schema)
        return schema

    # Assigning is how FastAPI's documentation extends the schema.
    app.openapi = openapi  # type: ignore[method-assign]


def _describe_problems(schema: dict[str, Any]) -> None:
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    for model in ("HTTPValidationError", "ValidationError"):
        components.pop(model, None)
    definition = Problem.model_json_schema(
        ref_template=_SCHEMA_PATH + "{model}", mode="serialization"
    )
    components |= definition.pop("$defs")
    components["Problem"] = definition
    for path in schema.get("paths", {}).values():
        for operation in path.values():
            documented = operation["responses"]
            if operation.get("security"):
                # By the guard, wherever it is mounted.
                documented.setdefault("401", {"description": _phrase(401), "content": _content()})
            for response in documented.values():
                _use_problem_media_type(response)
            # The rate limit, the time limit and bugs are possible on every route.
            documented.setdefault("default", {"description": "Error", "content": _content()})


def _use_problem_media_type(response: dict[str, Any]) -> None:
    json_content = response.get("content", {}).get("application/json", {})
    if json_content.get("schema", {}).get("$ref") in {
        f"{_SCHEMA_PATH}Problem",
        f"{_SCHEMA_PATH}HTTPValidationError",
    }:
        response["content"] = _content()


def _content() -> dict[str, Any]:
    return {MEDIA_TYPE: {"schema": {"$ref": f"{_SCHEMA_PATH}Problem"}}}


def _phrase(status: int) -> str:
    try:
        return _PHRASES.get(status) or HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def _serialize(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body, default=str)
    except TypeError:
        # Names out of a JSON body may hold what UTF-8 cannot express, such as a lone surrogate.
        return json.dumps(body, default=str).encode()
